// SparseQConv with weights in quads of inputs.
//
// Four channels are packed into cells; then the geometry is that of SparseConv, with cells instead
// of floats and a quarter of the channels.
#pragma once

#include "conv_shares.hpp"
#include "ort.hpp"
#include "plan_cache.hpp"
#include "quad_plan.hpp"
#include "quantised_weights.hpp"

namespace mfac {

class QuadConv {
 public:
  explicit QuadConv(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  struct Batch;
  const Cell* stage(const Batch& batch, int64_t image, Buffer& buffer, const Call* call) const;
  void run_share(const Batch& batch, const Cell* pixels, int64_t image, const Share& share) const;
  void run_tile(const Batch& batch, const Cell* pixels, int64_t image, const QuadTile& tile,
                int64_t part, int64_t output_begin, int64_t output_end) const;

  int64_t parts_;
  int64_t channels_;  // of a part
  int64_t quads_;     // of a part
  Window window_;
  QuantisedWeights weights_;
  PlanCache<QuadPlan> plans_;
};

}  // namespace mfac
