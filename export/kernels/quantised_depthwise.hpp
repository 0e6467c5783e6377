// SparseQConv if it is depthwise, with weights in either format.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "ort.hpp"
#include "quantised_weights.hpp"

namespace mfac {

class QuantisedDepthwise {
 public:
  // Whether a node is such a convolution. Throws Refusal if an attribute is wrong.
  static bool fits(const NodeInfo& node);
  explicit QuantisedDepthwise(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  int64_t channels_;
  Window window_;
  QuantisedWeights weights_;
  std::vector<float> taps_;  // [channels, taps]
  std::vector<Cell> cells_;  // [channels, kernel height, quads of its width]
};

}  // namespace mfac
