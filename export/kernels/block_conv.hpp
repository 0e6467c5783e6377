// SparseQConv and SparseQConvAdd with weights in blocks of four outputs.
//
// A channel is bytes, with a copy for each column of the window, so that every tap is a shift and
// no gap lies between rows.
#pragma once

#include <functional>
#include <optional>

#include "block_plan.hpp"
#include "conv_shares.hpp"
#include "ort.hpp"
#include "plan_cache.hpp"
#include "quantised_weights.hpp"

namespace mfac {

class BlockConv {
 public:
  // Returns where an output of a shape is to be written.
  using Place = std::function<uint8_t*(const Shape& shape)>;
  explicit BlockConv(const NodeInfo& node, std::optional<ByteAddition> addition = {});
  void run(const Call& call) const {
    run(call, [&](const Shape& shape) { return call.output_bytes(shape); });
  }
  void run(const Call& call, const Place& place) const;

 private:
  struct Batch;
  const uint8_t* stage(const Batch& batch, int64_t image, Buffer& buffer, const Call* call) const;
  void stage_channels(const Batch& batch, int64_t channels, const uint8_t* pixels,
                      uint8_t* staged) const;
  void run_share(const Batch& batch, const uint8_t* pixels, int64_t image,
                 const Share& share) const;
  void run_tile(const Batch& batch, const uint8_t* pixels, int64_t image, const BlockTile& tile,
                int64_t part, int64_t group_begin, int64_t group_end) const;
  void add_residual(const Batch& batch, const BlockTile& tile, int64_t at, ByteStrip& strip) const;

  int64_t parts_;
  int64_t channels_;  // of a part
  Window window_;
  QuantisedWeights weights_;
  std::optional<ByteAddition> addition_;
  PlanCache<BlockPlan> plans_;
};

}  // namespace mfac
