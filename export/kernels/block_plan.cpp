#include "block_plan.hpp"

#include <limits>

#include "simd.hpp"

namespace mfac {
namespace {

// A whole channel is one run. If it is copied, it fills a line.
Runs plan_pixels(const Images& input) {
  const ByteStripTable& strips = simd_kernels().bytes.strips;
  Runs runs;
  runs.rows = 1;
  runs.length = runs.row_stride = input.width;
  // What is read in place is not read beyond its end: the last strip may overlap the previous one.
  runs.in_place = input.width >= strips.positions[0];
  runs.channel_stride = runs.in_place ? input.width : kLine;
  return runs;
}

// The widest strips, and for the rest the narrowest that holds it.
std::vector<BlockTile> cut(const Runs& runs) {
  const ByteStripTable& strips = simd_kernels().bytes.strips;
  std::vector<BlockTile> tiles;
  for (int64_t first = 0; first < runs.length; first += strips.positions[0]) {
    const int64_t rest = runs.length - first;
    int width = rest >= strips.positions[0] ? 0 : strips.count - 1;
    while (strips.positions[width] < rest && width > 0) --width;
    const int64_t length = strips.positions[width];
    const int64_t beyond = rest < length ? length - rest : 0;
    const int64_t skip = runs.in_place ? beyond : 0;
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
  } else {
    Images cells = input;  // four bytes each, for the limit of an image's size
    cells.channels = quads_of(input.channels);
    plan.runs = plan_runs(cells, output, window, true);
  }
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(plan.runs.channel_stride, input.channels, &bytes) &&
              bytes <= std::numeric_limits<int32_t>::max() - kLine,
          "one image's padded input must be smaller than 2 GiB");
  plan.tiles = cut(plan.runs);
  for (int64_t part = 0; part < weights.parts; ++part)
    plan.parts.push_back(in_steps(weights, part, [&](int64_t input_index) {
      const int64_t tap = input_index % window.taps();
      return input_index / window.taps() * plan.runs.channel_stride +
             plan.runs.tap_offset(window, tap / window.kernel[1], tap % window.kernel[1]);
    }));
  return plan;
}

}  // namespace mfac
