// SparseConv: Y = act(conv(X, W) + bias + residual), in the layouts of conv_geometry.hpp.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "activation.hpp"
#include "conv_plan.hpp"
#include "conv_shares.hpp"
#include "ort.hpp"
#include "packed_weights.hpp"
#include "plan_cache.hpp"
#include "scratch.hpp"

namespace mfac {

class Conv {
 public:
  static constexpr const char* kName = "SparseConv";
  static constexpr auto kTypes = kFloatTypes;
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static constexpr size_t kFirstOptional = kBias;
  static constexpr bool kInResidual = true;  // the output may have the residual's memory
  // in_nchw: all images are, and the node has no attributes that say so.
  explicit Conv(const NodeInfo& node, bool in_nchw = false);
  void run(const Call& call) const;

 private:
  friend class ConvDepthwise;
  // The images of one call.
  struct Batch {
    std::shared_ptr<const ConvPlan> plan;
    const float* x = nullptr;
    float* y = nullptr;
    int64_t before = 0;  // floats of the output that come before y, which are not written
    const float* residual = nullptr;
    Images residuals;  // its layout
    int64_t count = 0;
    bool checked = false;  // whether the input was checked before the tiles read it
    // Whether any input that is read, or output, is NaN or infinite. Threads only set them.
    mutable std::atomic<bool> bad_input{false}, bad_output{false};
    // Whether the output has the memory of the residual. Without images both pointers may be null.
    bool in_residual() const { return residual == y && count > 0; }
  };
  static const float* copied(const Tensor& images);
  void run_images(const Call& call, const Batch& batch) const;
  const float* stage(const Batch& batch, int64_t image, Buffer& buffer, const Call* call) const;
  const float* stage_range(const Batch& batch, int64_t image, const Tile& tile, int64_t first,
                           int64_t channels, bool checks) const;
  void run_share(const Batch& batch, const float* pixels, int64_t image, const Share& share) const;
  void run_tile(const Batch& batch, const float* pixels, int64_t image, const Tile& tile,
                int64_t part, int64_t group_begin, int64_t group_end) const;
  std::vector<float> depthwise_weights() const;
  void run_depthwise(const Call& call, const Batch& batch, const Images& input,
                     const Images& output) const;
  void check_tile(const Batch& batch, const float* pixels, const Tile& tile) const;
  void run_dense(const Batch& batch) const;

  int64_t channels_;
  int64_t parts_;
  Window window_;
  bool input_planes_, output_planes_, residual_planes_;
  PackedWeights weights_;
  Activation activation_;
  std::vector<float> depthwise_;  // [channels, taps]; empty if other kernels compute it
  PlanCache<ConvPlan> plans_;
  mutable TaskThreads threads_;
};

}  // namespace mfac
