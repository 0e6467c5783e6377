// SparseConvDepthwise: Y = act(depthwise(act(conv(X, W) + bias), V) + bias), all images in nchw.
//
// The images between the two convolutions are often the largest of a network. Here a few channels
// of them are computed at a time, as many as stay in the L2 cache, and read from there.
#pragma once

#include <array>
#include <vector>

#include "conv.hpp"

namespace mfac {

class ConvDepthwise {
 public:
  static constexpr const char* kName = "SparseConvDepthwise";
  static constexpr std::array<ort::ElementType, 7> kTypes = {
      ort::kFloat, ort::kFloat, ort::kInt32, ort::kInt32, ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static constexpr size_t kFirstOptional = kBias;
  static constexpr bool kInResidual = false;
  explicit ConvDepthwise(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  // The sizes of one call's images.
  struct Sizes {
    Images input, between, output;
  };
  void run_image(const Call& call, Conv::Batch& batch, const Sizes& sizes, float* y) const;
  void run_chunk(const Conv::Batch& batch, const float* pixels, const Sizes& sizes,
                 const Share& share, float* y) const;
  void run_dense(Conv::Batch& batch, const Sizes& sizes, float* y) const;
  void run_depthwise(const Sizes& sizes, int64_t first, int64_t count, const float* from,
                     float* y) const;

  Conv conv_;
  Window window_{};             // of the depthwise convolution
  std::vector<float> weights_;  // [channels, taps]
  std::vector<float> bias_;     // [channels]; zeros if none is given
  bool has_bias_ = false;
  Activation activation_;
};

}  // namespace mfac
