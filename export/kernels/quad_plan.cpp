#include "quad_plan.hpp"

#include "conv_ranges.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kLeastInRange = 6;  // stored blocks of each group

// As few tiles as the registers allow, of about equal length. A run is a channel of the output.
std::vector<QuadTile> cut(const Runs& runs) {
  const QuadStripTable& strips = simd_kernels().quads.strips;
  const int64_t vectors = (runs.length + strips.lanes - 1) / strips.lanes;
  const int64_t count = (vectors + strips.longest - 1) / strips.longest;
  std::vector<QuadTile> tiles;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = vectors * i / count;
    const int64_t end = vectors * (i + 1) / count;
    const bool direct = end * strips.lanes <= runs.length;
    tiles.push_back(
        {first * strips.lanes, (end - first) * strips.lanes, strips.run[end - first], direct});
  }
  return tiles;
}

}  // namespace

QuadPlan make_quad_plan(const PackedBlocks<Cell>& weights, const Window& window,
                        const Images& input, const Images& output) {
  QuadPlan plan;
  plan.input = input;
  plan.output = output;
  plan.runs = plan_runs(input, output, window, Staging::kByColumn);
  plan.tiles = cut(plan.runs);
  plan.range_channels =
      channels_in_range(weights, window, plan.runs, plan.tiles[0].length, kLeastInRange);
  plan.ranged = taps_by_ranges(weights, window, plan.runs, plan.range_channels);
  return plan;
}

}  // namespace mfac
