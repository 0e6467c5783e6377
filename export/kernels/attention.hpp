// Attention: Y = softmax(scale * Q K^T + mask) V for each head, heads side by side.
//
// Queries, keys and values are read where a linear layer wrote them, and the result is written as
// the next one reads it: ONNX Runtime transposes all four, and keeps the scores of all heads.
#pragma once

#include <array>

#include "ort.hpp"

namespace mfac {

class Attention {
 public:
  enum Input : size_t { kQuery, kKey, kValue, kMask };
  static constexpr const char* kName = "Attention";
  static constexpr std::array<ort::ElementType, 4> kTypes = {ort::kFloat, ort::kFloat, ort::kFloat,
                                                             ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static constexpr size_t kFirstOptional = kMask;
  static constexpr bool kInResidual = false;
  explicit Attention(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  // A tensor [batch, length, features], or [length, batch, features]. Strides are in floats.
  struct Rows {
    int64_t batch, length;
    int64_t batch_stride, row_stride;  // 0 if it is empty
  };
  // The rows of an input and the first head in them.
  struct Source : Rows {
    const float* data;
  };
  // Strides are 0 along axes that are broadcast.
  struct Mask {
    const float* data = nullptr;
    int64_t batch = 0, head = 0, query = 0;
  };
  struct Operands {
    Source query, key, value;
    Mask mask;
    Rows y;  // of the result
  };
  // What the tiles of a head share. Each is of its first row.
  struct Head {
    const float *query, *key;
    const float* values;  // [keys, size], contiguous
    const float* mask;    // or null
    float* y;
  };
  Rows describe(const Shape& shape) const;
  Source read_source(const Call& call, Input input) const;
  Mask read_mask(const Call& call, const Operands& operands) const;
  Operands read(const Call& call) const;
  Head head_of(const Operands& operands, float* output, int64_t batch, int64_t head) const;
  void run_tiles(const Operands& operands, const Head& head, int64_t first, int64_t last) const;
  void run_tile(const Operands& operands, const Head& head, int64_t first, int64_t count) const;

  int64_t heads_, size_;
  int64_t offsets_[3];  // of the first head in a row: of queries, keys and values
  float scale_;
  bool nan_to_zero_;   // whether the weights of a query become zeros if any is NaN
  bool length_first_;  // whether the first axis of all but the mask is the length, not the batch
};

}  // namespace mfac
