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
  // Where the heads lie in the rows of one of the inputs.
  struct Rows {
    const float* data = nullptr;  // of the first head
    int64_t count = 0;            // of one sequence
    int64_t stride = 0;           // floats
    const float* head(int64_t batch, int64_t head, int64_t size) const {
      return data + batch * count * stride + head * size;
    }
  };
  // Strides are 0 along axes that are broadcast.
  struct Mask {
    const float* data = nullptr;
    int64_t batch = 0, head = 0, query = 0;
  };
  struct Inputs {
    int64_t batch;
    Rows query, key, value;
    Mask mask;
    float* y;
  };
  Rows read_rows(const Call& call, Input input, const char* name, int64_t offset,
                 int64_t* batch) const;
  Mask read_mask(const Call& call, const Inputs& inputs) const;
  void run_head(const Inputs& inputs, int64_t batch, int64_t head, int64_t first,
                int64_t last) const;
  void run_tile(const Inputs& inputs, int64_t batch, int64_t head, const float* values,
                int64_t first, int64_t count) const;

  int64_t heads_, size_;
  int64_t offsets_[3];  // of the first head in a row: of queries, keys and values
  float scale_;
  bool nan_to_zero_;  // whether the weights of a query become zeros if any is NaN
};

}  // namespace mfac
