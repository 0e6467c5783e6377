// Reads attributes, constants and tensors through the C ABI. Exceptions never cross the ABI.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.hpp"

namespace mfac {

// An invalid model or input, with a message for the user. Never crosses the ABI.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr size_t kMaxRank = 8;

struct Shape {
  int64_t dims[kMaxRank] = {};
  size_t rank = 0;
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }
};

inline std::string text(const char* words) { return words; }
inline std::string text(const std::string& words) { return words; }
inline std::string text(int64_t number) { return std::to_string(number); }
std::string text(const Shape& shape);

// Throw Refusal unless a condition holds. The message is built only then: this runs in every call.
template <class... Parts>
inline void require(bool holds, const Parts&... parts) {
  if (__builtin_expect(holds, 1)) return;
  throw Refusal("mfac_compress: " + (text(parts) + ...));
}

// The product of all dimensions. Throws if it overflows.
int64_t element_count(const Shape& shape);

struct Tensor {
  const void* data = nullptr;
  Shape shape;
  explicit operator bool() const { return data != nullptr; }
  const float* floats() const { return static_cast<const float*>(data); }
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(data); }
};

// A node during the creation of its session.
class NodeInfo {
 public:
  NodeInfo(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {}
  // Attributes have no defaults: ONNX Runtime returns the same error for a missing attribute and
  // for one of another type, and a default would hide the second.
  int64_t integer(const char* name) const;
  // Whether there is an attribute of this name, of any type that a node of ours may have.
  bool has(const char* name) const;
  float real(const char* name) const;
  std::string word(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;
  // A constant initializer; empty if the node has no such input.
  Tensor constant(size_t index, const char* name, ort::ElementType type, bool optional) const;

 private:
  const ort::Api& api_;
  const ort::KernelInfo* info_;
};

// A node during a run.
class Call {
 public:
  Call(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {}
  Tensor input(size_t index, ort::ElementType type = ort::kFloat) const;
  float* output(const Shape& shape) const { return static_cast<float*>(allocate(0, shape)); }
  uint8_t* output_bytes(const Shape& shape) const {
    return static_cast<uint8_t*>(allocate(0, shape));
  }
  // Null if the node has none.
  float* second_output(const Shape& shape) const { return static_cast<float*>(allocate(1, shape)); }
  // Run task(0) ... task(count - 1) on ONNX Runtime's own thread pool. A task may run out of
  // memory, an exception that must not reach the pool; it must throw nothing else.
  template <class Task>
  void parallel(size_t count, Task& task) const {
    if (count == 1) {
      task(size_t{0});
      return;
    }
    Shared<Task> shared{task};
    run(count, Shared<Task>::call, &shared);
    if (shared.out_of_memory) throw std::bad_alloc();
  }

 private:
  template <class Task>
  struct Shared {
    Task& task;
    std::atomic<bool> out_of_memory{false};
    static void call(void* all, size_t index) noexcept {
      auto& shared = *static_cast<Shared*>(all);
      try {
        shared.task(index);
      } catch (const std::bad_alloc&) {
        shared.out_of_memory = true;
      }
    }
  };
  void* allocate(size_t index, const Shape& shape) const;  // null: no such output
  void run(size_t count, void (*task)(void*, size_t), void* argument) const;
  const ort::Api& api_;
  ort::KernelContext* context_;
};

// Run a function that may throw and convert an exception to a status.
template <class Function>
ort::Status* guarded(const ort::Api& api, Function&& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return api.create_status(ort::kFail, "mfac_compress: out of memory");
  } catch (const std::exception& error) {
    return api.create_status(ort::kInvalidArgument, error.what());
  } catch (...) {
    return api.create_status(ort::kFail, "mfac_compress: unknown failure");
  }
}

}  // namespace mfac
