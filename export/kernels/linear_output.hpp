// What becomes of the sums of a quantised linear layer:
//   kBytes:    round((sum + bias) * scale) + zero point, with a bias of whole numbers
//   kToFloat:  z = activation(sum * scale + bias + residual)
//   kViaFloat: round(z / y_scale) + zero point, without a residual
#pragma once

#include <cstdint>
#include <vector>

#include "activation.hpp"
#include "ort.hpp"
#include "quantised_weights.hpp"

namespace mfac {

// The tensors of a call. Of y, the one that the operator returns.
struct LinearRows {
  const uint8_t* x = nullptr;
  int64_t count = 0;
  uint8_t* bytes = nullptr;
  float* floats = nullptr;
  const float* residual = nullptr;  // like y, or null
};

class LinearOutput {
 public:
  LinearOutput(const NodeInfo& node, SumsKind kind, const QuantisedWeights& weights);
  bool in_floats() const { return kind_ != SumsKind::kBytes; }
  // Allocates the output. Throws Refusal if an input does not fit.
  LinearRows open(const Call& call, int64_t inputs) const;
  // Finish the sums [outputs, height] of `count` rows and some outputs; they are overwritten.
  void finish_columns(int32_t* sums, int64_t height, int64_t row, int64_t count, int64_t output,
                      int64_t outputs, const LinearRows& rows) const;
  // The same of some outputs of one row.
  void finish_row(int32_t* sums, int64_t row, int64_t output, int64_t outputs,
                  const LinearRows& rows) const;

 private:
  SumsKind kind_;
  int64_t outputs_;
  bool has_bias_ = false;
  std::vector<float> scales_, bias_;  // empty for kBytes
  Activation activation_{};
  float y_scale_ = 1;
  Requantise rounding_{};  // of z / y_scale
};

}  // namespace mfac
