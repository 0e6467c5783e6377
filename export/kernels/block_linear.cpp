#include "block_linear.hpp"

#include <algorithm>
#include <limits>

#include "row_tiles.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kRowsOneByOne = 2;        // up to so many rows a strip would be mostly empty
constexpr int64_t kOutputBytes = 16 << 10;  // of outputs between two transpositions
constexpr int64_t kTileSteps = 1000;        // of a tile that justify a thread
constexpr int64_t kRowSteps = 2500;         // of a row

// Of the lowest tiles, which leave more inputs in the first cache, and of the highest.
int64_t tile_rows(int size) {
  const ByteStripTable& strips = simd_kernels().bytes.strips;
  return strips.positions[size == 0 ? strips.count - 1 : 0];
}

}  // namespace

BlockLinear::BlockLinear(const NodeInfo& node, SumsKind kind)
    : inputs_(node.integer("in_features")),
      weights_(read_quantised(node, QuantisedFormat::kBlocks,
                              {node.integer("out_features"), inputs_, 1, 1}, kind)),
      output_(node, kind, weights_) {
  const int64_t most = std::numeric_limits<int32_t>::max() / tile_rows(1);
  require(inputs_ <= most, "in_features must be at most ", most);
  by_row_ = in_steps(weights_.blocks, 0, [](int64_t input) { return input; });
  for (int size = 0; size < 2; ++size)
    by_columns_[size] = in_steps(weights_.blocks, 0,
                                 [&](int64_t input) { return input * tile_rows(size); });
}

void BlockLinear::run(const Call& call) const {
  const LinearRows rows = output_.open(call, inputs_);
  if (rows.count == 0) return;
  if (rows.count <= kRowsOneByOne)
    run_rows(call, rows);
  else
    run_tiles(call, rows);
}

ByteStrip BlockLinear::strip_of(const Steps& steps, int64_t group_begin, int64_t group_end) const {
  const int64_t first = group_begin * kBlockOutputs;
  ByteStrip strip{};
  strip.steps = steps.all.data();
  strip.starts = steps.starts.data() + group_begin;
  strip.groups = group_end - group_begin;
  strip.outputs = std::min(group_end * kBlockOutputs, weights_.blocks.outputs) - first;
  strip.begin = weights_.blocks.bias.data() + first;
  strip.scales = weights_.scales.data() + first;
  strip.requantise = weights_.requantise;
  return strip;
}

void BlockLinear::run_rows(const Call& call, const LinearRows& rows) const {
  const SimdKernels& simd = simd_kernels();
  const int64_t groups = weights_.blocks.groups;
  const int64_t work = static_cast<int64_t>(by_row_.all.size());
  const int64_t chunks = std::clamp<int64_t>(work / kRowSteps, 1, std::min<int64_t>(groups, 16));
  auto task = [&](size_t index) {
    const int64_t row = static_cast<int64_t>(index) / chunks;
    const int64_t chunk = static_cast<int64_t>(index) % chunks;
    const int64_t begin = groups * chunk / chunks;
    ByteStrip strip = strip_of(by_row_, begin, groups * (chunk + 1) / chunks);
    strip.base = rows.x + row * inputs_;
    int32_t* sums = scratch().sums.cells(static_cast<size_t>(strip.groups * kBlockOutputs));
    simd.bytes.row(strip, sums);
    if (output_.in_floats())
      return output_.finish_row(sums, row, begin * kBlockOutputs, strip.outputs, rows);
    simd.quads.requantise(sums, strip.scales, strip.outputs, strip.requantise,
                          rows.bytes + row * weights_.blocks.outputs + begin * kBlockOutputs);
  };
  call.parallel(static_cast<size_t>(rows.count * chunks), task);
}

void BlockLinear::run_tiles(const Call& call, const LinearRows& rows) const {
  const int size = rows.count <= tile_rows(0) ? 0 : 1;
  const int64_t height = tile_rows(size);
  const int64_t tiles = (rows.count + height - 1) / height;
  const int64_t work = static_cast<int64_t>(by_columns_[size].all.size());
  auto fill = [&](int64_t tile, uint8_t* columns, int64_t begin, int64_t end) {
    const int64_t count = std::min(rows.count - tile * height, height);
    simd_kernels().bytes.transpose(rows.x + tile * height * inputs_ + begin, inputs_, count,
                                   end - begin, columns + begin * height, height);
  };
  share_tiles<uint8_t>(call, {tiles, inputs_, height, weights_.blocks.groups, work / kTileSteps},
                       fill, [&](int64_t index, const uint8_t* columns, int64_t begin, int64_t end) {
                         tile(rows, columns, size, index * height, begin, end);
                       });
}

void BlockLinear::tile(const LinearRows& rows, const uint8_t* columns, int size, int64_t first,
                       int64_t group_begin, int64_t group_end) const {
  const ByteKernels& bytes = simd_kernels().bytes;
  const int64_t count = std::min(rows.count - first, tile_rows(size));
  int width = bytes.strips.count - 1;  // the narrowest strip that holds all rows
  while (bytes.strips.positions[width] < count) --width;
  const int64_t length = bytes.strips.positions[width];
  const bool floats = output_.in_floats();
  const int64_t step = kOutputBytes / (length * kBlockOutputs * (floats ? 4 : 1));
  uint8_t* out = floats ? nullptr : scratch().outputs.bytes(static_cast<size_t>(kOutputBytes));
  int32_t* sums = floats ? scratch().sums.cells(static_cast<size_t>(kOutputBytes / 4)) : nullptr;
  for (int64_t begin = group_begin; begin < group_end; begin += step) {
    ByteStrip strip = strip_of(by_columns_[size], begin, std::min(begin + step, group_end));
    strip.base = columns;
    strip.out = out;
    strip.sums = sums;
    strip.out_stride = length;
    bytes.strips.run[width](strip);
    const int64_t output = begin * kBlockOutputs;
    if (floats) {
      output_.finish_columns(sums, length, first, count, output, strip.outputs, rows);
      continue;
    }
    bytes.transpose(out, length, strip.outputs, count,
                    rows.bytes + first * weights_.blocks.outputs + output, weights_.blocks.outputs);
  }
}

}  // namespace mfac
