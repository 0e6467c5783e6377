// SparseQLinear: Y[..., N] = requantised(X[..., K] W^T + bias), unsigned bytes in and out.
// SparseQConv: Y = requantised(conv(X, W) + bias), unsigned bytes in and out, [N, C, H, W].
//
// With the attribute `block` the weights are in blocks of outputs, without it in quads of inputs.
#pragma once

#include <memory>

#include "block_conv.hpp"
#include "block_linear.hpp"
#include "quad_conv.hpp"
#include "quad_linear.hpp"

namespace mfac {

template <class Quads, class Blocks>
class InEitherFormat {
 public:
  static constexpr auto kTypes = kQuantisedTypes;
  static constexpr size_t kFirstOptional = kSumBias;
  explicit InEitherFormat(const NodeInfo& node) {
    if (read_format(node) == QuantisedFormat::kBlocks)
      blocks_ = std::make_unique<Blocks>(node);
    else
      quads_ = std::make_unique<Quads>(node);
  }
  void run(const Call& call) const { blocks_ ? blocks_->run(call) : quads_->run(call); }

 private:
  std::unique_ptr<const Quads> quads_;
  std::unique_ptr<const Blocks> blocks_;
};

struct QuantisedLinear : InEitherFormat<QuadLinear, BlockLinear> {
  static constexpr const char* kName = "SparseQLinear";
  using InEitherFormat::InEitherFormat;
};

struct QuantisedConv : InEitherFormat<QuadConv, BlockConv> {
  static constexpr const char* kName = "SparseQConv";
  using InEitherFormat::InEitherFormat;
};

}  // namespace mfac
