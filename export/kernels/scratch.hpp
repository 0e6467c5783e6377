// Working memory that a thread keeps: it grows to the largest size needed and is not released, so
// that repeated calls allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mfac {

class Buffer {
 public:
  // At least `count` floats, aligned to a cache line, with undefined content.
  float* floats(size_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
      data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      if (!data_) throw std::bad_alloc();
      capacity_ = bytes / sizeof(float);
    }
    return data_.get();
  }
  // The same memory for 32-bit cells and for bytes.
  int32_t* cells(size_t count) { return reinterpret_cast<int32_t*>(floats(count)); }
  uint8_t* bytes(size_t count) { return reinterpret_cast<uint8_t*>(floats((count + 3) / 4)); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  size_t capacity_ = 0;
};

struct Scratch {
  Buffer inputs;   // activations in the kernels' order; read by all threads of a call
  Buffer columns;  // the same, of one task
  Buffer sums;     // of one task
  Buffer outputs;  // the same, quantised
  Buffer between;  // what one part of an operator makes and the next one reads
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

}  // namespace mfac
