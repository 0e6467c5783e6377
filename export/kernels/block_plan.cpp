#include "block_plan.hpp"

#include <limits>

#include "simd.hpp"

namespace mfac {
namespace {

// A whole channel is one run, read where it lies.
Runs plan_pixels(const Images& input) {
  Runs runs;
  runs.in_place = true;
  runs.rows = 1;
  runs.length = runs.row_stride = runs.channel_stride = input.width;
  return runs;
}

// The widest strips, and for the rest the narrowest that holds it.
std::vector<BlockTile> cut(const BlockPlan& plan) {
  const ByteStripTable& strips = simd_kernels().bytes.strips;
  // The tensor is not read beyond its end: there the last strip overlaps the previous one.
  const bool overlap = plan.runs.in_place && plan.column == 0;
  std::vector<BlockTile> tiles;
  for (int64_t first = 0; first < plan.runs.length; first += strips.positions[0]) {
    const int64_t rest = plan.runs.length - first;
    int width = strips.count - 1;
    while (width > 0 && strips.positions[width] < rest) --width;
    const int64_t length = strips.positions[width];
    const int64_t beyond = rest < length ? length - rest : 0;
    const int64_t skip = overlap ? beyond : 0;
    tiles.push_back({first - skip, length, skip, length - beyond + skip, strips.run[width]});
  }
  return tiles;
}

}  // namespace

BlockPlan make_block_plan(const PackedBlocks<Cell>& weights, const Window& window, const Images& input,
                    const Images& output) {
  BlockPlan plan;
  plan.input = input;
  plan.output = output;
  if (window.pointwise()) {
    plan.runs = plan_pixels(input);
    const int64_t widest = simd_kernels().bytes.strips.positions[0];
    plan.column = plan.runs.length < widest ? widest : 0;
  } else {
    Images cells = input;  // four bytes each, for the limit of an image's size
    cells.channels = quads_of(input.channels);
    plan.runs = plan_runs(cells, output, window, Staging::kByColumn);
  }
  const int64_t stride = plan.column > 0 ? plan.column : plan.runs.channel_stride;
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(stride, input.channels, &bytes) &&
              bytes < std::numeric_limits<int32_t>::max(),
          "one image's padded input must be smaller than 2 GiB");
  plan.tiles = cut(plan);
  for (int64_t part = 0; part < weights.parts; ++part)
    plan.parts.push_back(in_steps(weights, part, [&](int64_t input_index) {
      const int64_t tap = input_index % window.taps();
      return input_index / window.taps() * stride +
             plan.runs.tap_offset(window, tap / window.kernel[1], tap % window.kernel[1]);
    }));
  return plan;
}

}  // namespace mfac
