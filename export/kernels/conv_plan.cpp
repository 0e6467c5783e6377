#include "conv_plan.hpp"

#include <algorithm>
#include <limits>

#include "conv_ranges.hpp"
#include "conv_stage.hpp"
#include "tiling.hpp"

namespace mfac {
namespace {

constexpr int64_t kUnshiftedFloats = 80;  // shorter tiles cost more than they save

// A range of channels must contain so many stored blocks of each group.
int64_t least_in_range(const PackedWeights& weights) {
  return weights.block == 1 ? tiling().conv_singles : tiling().conv_blocks;
}

// The number of tiles for which a run takes the least time, counted in half cycles. A stored weight
// costs the loads of the tile's vectors and about two more, a block its multiply-adds; each range
// of channels costs a load and a store of every sum. Long tiles load weights less often; of short
// ones more channels fit in the first cache, which makes fewer ranges.
int64_t cheapest_tiles(const ConvPlan& plan, const PackedWeights& weights, const Window& window,
                       int64_t vectors, const StripTable& table) {
  const int64_t longest = table.longest[block_class(weights.block)];
  const int64_t stored = static_cast<int64_t>(weights.indices.size());
  const int64_t groups = weights.groups * weights.parts;
  const int64_t channels = plan.input.channels / weights.parts;
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t length = longest; length > 0; --length) {
    const int64_t count = (vectors + length - 1) / length;
    Runs runs = plan.runs;
    for (int64_t i = 0; i < count; ++i)
      fit_to_tile(plan.output, vectors * i / count * table.lanes, length * table.lanes, runs);
    const int64_t at_once = channels_in_range(weights, window, runs, length * table.lanes,
                                              least_in_range(weights));
    const int64_t ranges = (channels + at_once - 1) / at_once;
    const int64_t by_block = length * weights.block + 2;
    const int64_t by_range = 16 + 5 * length * weights.block;
    const int64_t time = (stored * by_block + groups * ranges * by_range) * count;
    if (time < least) best = count, least = time;
  }
  return best;
}

// As few tiles as the registers allow, of about equal length, including positions between rows.
std::vector<Tile> cut(const ConvPlan& plan, const PackedWeights& weights, const Window& window,
                      int kind) {
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
  const int64_t count = runs.by_tile ? cheapest_tiles(plan, weights, window, vectors, table)
                                     : (vectors + longest - 1) / longest;
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
std::vector<Tile> cut_rows(const ConvPlan& plan, const PackedWeights&, const Window&, int kind) {
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
  if (runs.by_tile) return false;
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

// The number of stored blocks that read each copy of a channel.
int64_t reads_of_copy(const PackedWeights& weights, const Window& window, const Images& input) {
  return static_cast<int64_t>(weights.indices.size()) / (input.channels * window.kernel[1]);
}

constexpr int64_t kReads = 8;  // that pay for a copy

// Whether copying for each tile anew, so that hardly a load crosses cache lines, saves more than it
// costs. Loads are what limits single weights; blocks of outputs are limited by multiply-adds, and
// gain only where nothing is copied twice.
bool stages_by_tile(const PackedWeights& weights, const Window& window, const Images& input,
                    const Images& output) {
  constexpr int64_t kRows = 4;     // of a tile, for each that it shares with the next one
  constexpr int64_t kWindow = 8;   // more copies would leave little room in the first cache
  if (!tiling().wide_shifted || (weights.block > 1 && window.taps() > 1)) return false;
  if (std::max(window.kernel[0], window.kernel[1]) > kWindow) return false;
  const int64_t shared = (window.kernel[0] - 1) * window.dilations[0] / window.strides[0];
  const int64_t longest = simd_kernels().wide.longest[0] * simd_kernels().wide.lanes;
  if (shared > longest) return false;  // dilations may be so large that the product below overflows
  // The shared copy of a window of one tap is aligned if a channel has whole cache lines.
  if (window.taps() == 1 && output.channel_stride() % kLineFloats == 0) return false;
  const bool fits = std::max<int64_t>(kRows * shared, 1) * output.width <= longest;
  if (!fits && !window.pointwise()) return false;
  return reads_of_copy(weights, window, input) >= kReads;
}

Staging choose_staging(const PackedWeights& weights, const Window& window, const Images& input,
                       const Images& output) {
  if (stages_by_tile(weights, window, input, output)) return Staging::kByTile;
  return stages_columns(input, output, window) ? Staging::kByColumn : Staging::kShared;
}

}  // namespace

ConvPlan make_plan(const PackedWeights& weights, const Window& window, const Images& input,
                   const Images& output) {
  ConvPlan plan;
  plan.input = input;
  plan.output = output;
  plan.runs = plan_runs(input, output, window, choose_staging(weights, window, input, output));
  const auto tiles = has_aligned_rows(output, plan.runs) ? cut_rows : cut;
  plan.tiles = tiles(plan, weights, window, block_class(weights.block));
  // Each chunk of the outputs copies again what it reads.
  if (plan.runs.by_tile) {
    for (const Tile& tile : plan.tiles)
      fit_to_tile(output, tile.first, tile.length, plan.runs);
    plan.most_chunks = std::max<int64_t>(reads_of_copy(weights, window, input) / (4 * kReads), 1);
  }
  plan.range_channels = channels_in_range(weights, window, plan.runs, plan.tiles[0].length,
                                          least_in_range(weights));
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
