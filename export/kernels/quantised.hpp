// SparseQLinear: Y[..., N] = requantised(X[..., K] W^T + bias), unsigned bytes in and out.
// SparseQLinearToFloat, SparseQLinearViaFloat: the same with floats after the sums.
// SparseQConv: Y = requantised(conv(X, W) + bias), unsigned bytes in and out, [N, C, H, W].
// SparseQConvMaxPool: the same, and the largest byte in each window of the result; in blocks of outputs.
// SparseQConvAdd: the same with a residual added, unsigned bytes as well; in blocks of outputs only.
//
// With the attribute `block` the weights are in blocks of outputs, without it in quads of inputs.
#pragma once

#include <memory>

#include "block_conv.hpp"
#include "block_linear.hpp"
#include "conv_max_pool.hpp"
#include "quad_conv.hpp"
#include "quad_linear.hpp"
#include "quantised_depthwise.hpp"

namespace mfac {

template <class Quads, class Blocks>
class InEitherFormat {
 public:
  static constexpr auto kTypes = kQuantisedTypes;
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static constexpr size_t kFirstOptional = kSumBias;
  static constexpr bool kInResidual = false;
  template <class... Kind>
  explicit InEitherFormat(const NodeInfo& node, Kind... kind) {
    if (read_format(node) == QuantisedFormat::kBlocks)
      blocks_ = std::make_unique<Blocks>(node, kind...);
    else
      quads_ = std::make_unique<Quads>(node, kind...);
  }
  void run(const Call& call) const { blocks_ ? blocks_->run(call) : quads_->run(call); }

 private:
  std::unique_ptr<const Quads> quads_;
  std::unique_ptr<const Blocks> blocks_;
};

struct QuantisedLinear : InEitherFormat<QuadLinear, BlockLinear> {
  static constexpr const char* kName = "SparseQLinear";
  explicit QuantisedLinear(const NodeInfo& node) : InEitherFormat(node, SumsKind::kBytes) {}
};

struct LinearToFloat : InEitherFormat<QuadLinear, BlockLinear> {
  static constexpr const char* kName = "SparseQLinearToFloat";
  static constexpr auto kTypes = kToFloatTypes;
  static constexpr ort::ElementType kOutput = ort::kFloat;
  explicit LinearToFloat(const NodeInfo& node) : InEitherFormat(node, SumsKind::kToFloat) {}
};

struct LinearViaFloat : InEitherFormat<QuadLinear, BlockLinear> {
  static constexpr const char* kName = "SparseQLinearViaFloat";
  static constexpr auto kTypes = kViaFloatTypes;
  explicit LinearViaFloat(const NodeInfo& node) : InEitherFormat(node, SumsKind::kViaFloat) {}
};

class QuantisedConv {
 public:
  static constexpr const char* kName = "SparseQConv";
  static constexpr auto kTypes = kQuantisedTypes;
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static constexpr size_t kFirstOptional = kSumBias;
  static constexpr bool kInResidual = false;
  explicit QuantisedConv(const NodeInfo& node) {
    if (QuantisedDepthwise::fits(node))
      depthwise_ = std::make_unique<QuantisedDepthwise>(node);
    else
      others_ = std::make_unique<InEitherFormat<QuadConv, BlockConv>>(node);
  }
  void run(const Call& call) const { depthwise_ ? depthwise_->run(call) : others_->run(call); }

 private:
  std::unique_ptr<const QuantisedDepthwise> depthwise_;
  std::unique_ptr<const InEitherFormat<QuadConv, BlockConv>> others_;
};

class QuantisedConvAdd {
 public:
  static constexpr const char* kName = "SparseQConvAdd";
  static constexpr auto kTypes = kAddedTypes;
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static constexpr size_t kFirstOptional = kSumBias;
  static constexpr bool kInResidual = false;
  explicit QuantisedConvAdd(const NodeInfo& node) : conv_(node, read_addition(node)) {}
  void run(const Call& call) const { conv_.run(call); }

 private:
  BlockConv conv_;
};

}  // namespace mfac
