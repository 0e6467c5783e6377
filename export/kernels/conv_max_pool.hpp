// SparseQConvMaxPool: Y = maxpool(requantised(conv(X, W) + bias)), unsigned bytes in and out.
//
// The image between the two is never an output: ONNX Runtime's own pooling of bytes takes 20 ns for
// each of its results.
#pragma once

#include "block_conv.hpp"

namespace mfac {

class ConvMaxPool {
 public:
  static constexpr const char* kName = "SparseQConvMaxPool";
  static constexpr auto kTypes = kQuantisedTypes;
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static constexpr size_t kFirstOptional = kSumBias;
  static constexpr bool kInResidual = false;
  explicit ConvMaxPool(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  BlockConv conv_;
  Window window_;  // of the pooling
};

}  // namespace mfac
