#include "conv_plan.hpp"

#include <algorithm>

#include "conv_ranges.hpp"
#include "tiling.hpp"

namespace mfac {
namespace {

constexpr int64_t kUnshiftedFloats = 80;  // shorter tiles cost more than they save

// As few tiles as the registers allow, of about equal length, including positions between rows.
std::vector<Tile> cut(const ConvPlan& plan, int kind) {
  const Images& output = plan.output;
  const Runs& runs = plan.runs;
  const SimdKernels& simd = simd_kernels();
  // Of a short run most of a wide vector would be wasted.
  const bool wide = runs.unshifted || (tiling().wide_shifted && runs.length >= simd.wide.lanes);
  const StripTable& table = wide ? simd.wide : simd.narrow;
  // With many channels and long tiles too few channels would fit in the L1 cache.
  const int64_t fitting = std::max(tiling().conv_range / 4 / plan.input.channels, kUnshiftedFloats);
  const int64_t longest = runs.unshifted
                              ? std::min<int64_t>(table.longest[kind], fitting / table.lanes)
                              : table.longest[kind];
  const int64_t lanes = table.lanes;
  const int64_t vectors = (runs.length + lanes - 1) / lanes;
  const int64_t count = (vectors + longest - 1) / longest;
  // Only a plane's lower border may be written (with zeros) beyond its last pixel.
  const int64_t writable = runs.length + (output.planes ? runs.row_stride : 0);
  const bool same_rows = runs.row_stride == output.row_stride();
  std::vector<Tile> tiles;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = vectors * i / count;
    const int64_t number = vectors * (i + 1) / count - begin;
    // The last vector of a bounded run ends with it.
    const int64_t back =
        runs.bounded ? std::max<int64_t>((begin + number) * lanes - runs.length, 0) : 0;
    Tile tile{begin * lanes, number * lanes - back, back,  0, table.run[kind][number], false,
              false,         false};
    if (back > 0 && number == 1)  // what comes before it belongs to another tile
      tile = {runs.length - lanes, lanes, 0, back, table.run[kind][1], false, false, false};
    tile.direct = same_rows && tile.skip == 0 && tile.first + tile.length <= writable;
    tiles.push_back(tile);
  }
  return tiles;
}

// Tiles of whole rows if the registers can hold one, else of parts of a row.
std::vector<Tile> cut_rows(const ConvPlan& plan, int kind) {
  const Images& output = plan.output;
  const Runs& runs = plan.runs;
  const StripTable& table = simd_kernels().narrow;
  const int64_t row = output.width / table.lanes;
  const int64_t longest = table.longest[kind];
  std::vector<Tile> tiles;
  if (row <= longest) {
    const StripTable& by_rows = simd_kernels().rows[output.width / 16];
    const int64_t most = longest / row;
    const int64_t count = (output.height + most - 1) / most;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = output.height * i / count;
      const int64_t rows = output.height * (i + 1) / count - first;
      tiles.push_back({first * runs.row_stride, rows * runs.row_stride, 0, 0,
                       by_rows.run[kind][rows * row], output.aligned(), true, true});
    }
    return tiles;
  }
  int64_t part = longest;
  while (row % part != 0) --part;
  for (int64_t y = 0; y < output.height; ++y)
    for (int64_t x = 0; x < row; x += part)
      tiles.push_back({y * runs.row_stride + x * table.lanes, part * table.lanes, 0, 0,
                       table.run[kind][part], output.aligned(), true, x + part == row});
  return tiles;
}

bool has_aligned_rows(const Images& output, const Runs& runs) {
  Images planes = output;
  planes.planes = true;
  return planes.aligned() && runs.row_stride == planes.row_stride();
}

// A copy for each column of the window, as many as the window has: no position is left out, and the
// results go where they belong at once. Worth it if few channels are copied and many computed; the
// copies of a wide window (a network's that reads sound has hundreds of columns) could be far larger
// than the results.
bool stages_columns(const Images& input, const Images& output, const Window& window) {
  constexpr int64_t kFew = 4;
  return !input.planes && !output.planes && window.kernel[1] > 1 &&
         input.channels * std::max(kFew, window.kernel[1]) <= output.channels;
}

}  // namespace

ConvPlan make_plan(const PackedWeights& weights, const Window& window, const Images& input,
                   const Images& output) {
  ConvPlan plan;
  plan.input = input;
  plan.output = output;
  plan.runs = plan_runs(input, output, window, stages_columns(input, output, window));
  const auto tiles = has_aligned_rows(output, plan.runs) ? cut_rows : cut;
  plan.tiles = tiles(plan, block_class(weights.block));
  plan.range_channels = channels_in_range(weights, window, plan.runs, plan.tiles[0].length);
  plan.ranged = taps_by_ranges(weights, window, plan.runs, plan.range_channels);
  const Tile& last = plan.tiles.back();
  if (!last.whole) plan.keep.resize(static_cast<size_t>(last.first + last.length));
  for (size_t i = 0; i < plan.keep.size(); ++i) {
    const int64_t position = static_cast<int64_t>(i);
    const bool inside =
        position < plan.runs.length && position % plan.runs.row_stride < output.width;
    plan.keep[i] = inside ? -1 : 0;
  }
  return plan;
}

}  // namespace mfac
