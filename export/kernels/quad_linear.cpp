#include "quad_linear.hpp"

#include <algorithm>
#include <cstring>

#include "row_tiles.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kRowsOneByOne = 3;       // up to so many rows a strip would be mostly empty
constexpr int64_t kRangeBytes = 32 << 10;  // of activations processed at a time
constexpr int64_t kSumsBytes = 64 << 10;   // of outputs between two transpositions
constexpr int64_t kTaskQuads = 8000;       // quads times vectors that justify a thread
constexpr int kVectors[2] = {1, 4};        // in a strip, for few rows and for many

}  // namespace

QuadLinear::QuadLinear(const NodeInfo& node, SumsKind kind)
    : inputs_(node.integer("in_features")),
      weights_(read_quantised(node, QuantisedFormat::kQuads,
                              {node.integer("out_features"), inputs_, 1, 1}, kind)),
      output_(node, kind, weights_) {
  const int lanes = simd_kernels().quads.strips.lanes;
  for (int i = 0; i < 2; ++i)
    tiled_[i] = by_columns(weights_.blocks, lanes * kVectors[i], kRangeBytes);
  for (int32_t index : weights_.blocks.indices)
    offsets_.push_back(index * static_cast<int32_t>(sizeof(Cell)));
}

void QuadLinear::run(const Call& call) const {
  const LinearRows rows = output_.open(call, inputs_);
  if (rows.count == 0) return;
  if (rows.count <= kRowsOneByOne)
    run_rows(call, rows);
  else
    run_tiles(call, rows);
}

// Quads begin ... end - 1 of rows: in place, or copied to the given memory, which holds whole rows,
// with zeros after the last input.
const uint8_t* QuadLinear::in_quads(const uint8_t* rows, int64_t count, int64_t begin, int64_t end,
                                    uint8_t* padded) const {
  const int64_t first = begin * kQuad;
  if (inputs_ % kQuad == 0) return rows + first;
  const int64_t stride = weights_.blocks.inputs * kQuad;
  const int64_t bytes = std::min(end * kQuad, inputs_) - first;
  for (int64_t row = 0; row < count; ++row) {
    uint8_t* to = padded + row * stride;
    std::memset(to + (end - 1) * kQuad, 0, kQuad);
    std::memcpy(to + first, rows + row * inputs_ + first, static_cast<size_t>(bytes));
  }
  return padded + first;
}

QuadStrip QuadLinear::strip_of(int64_t first_output, int64_t outputs) const {
  QuadStrip strip{};
  strip.outputs = outputs;
  strip.begin = weights_.blocks.bias.data() + first_output;
  strip.scales = weights_.scales.data() + first_output;
  strip.requantise = weights_.requantise;
  return strip;
}

void QuadLinear::run_rows(const Call& call, const LinearRows& rows) const {
  const QuadKernels& quads = simd_kernels().quads;
  const PackedBlocks<Cell>& w = weights_.blocks;
  const int64_t work = static_cast<int64_t>(w.values.size());
  const int64_t chunks = std::clamp<int64_t>(work / kTaskQuads, 1, std::min<int64_t>(w.groups, 16));
  const size_t padded = static_cast<size_t>(rows.count * w.inputs * kQuad);
  const uint8_t* x = in_quads(rows.x, rows.count, 0, w.inputs,
                              inputs_ % kQuad ? scratch().inputs.bytes(padded) : nullptr);
  auto task = [&](size_t index) {
    const int64_t row = static_cast<int64_t>(index) / chunks;
    const int64_t chunk = static_cast<int64_t>(index) % chunks;
    const int64_t first = w.groups * chunk / chunks;
    QuadStrip strip = strip_of(first, w.groups * (chunk + 1) / chunks - first);
    strip.offsets = offsets_.data();
    strip.values = w.values.data();
    strip.starts = w.starts.data() + first;
    strip.base = reinterpret_cast<const char*>(x + row * w.inputs * kQuad);
    strip.sums = scratch().sums.cells(static_cast<size_t>(strip.outputs));
    quads.row(strip);
    if (output_.in_floats()) return output_.finish_row(strip.sums, row, first, strip.outputs, rows);
    quads.requantise(strip.sums, strip.scales, strip.outputs, strip.requantise,
                     rows.bytes + row * w.outputs + first);
  };
  call.parallel(static_cast<size_t>(rows.count * chunks), task);
}

void QuadLinear::run_tiles(const Call& call, const LinearRows& rows) const {
  const SimdKernels& simd = simd_kernels();
  const PackedBlocks<Cell>& w = weights_.blocks;
  const int lanes = simd.quads.strips.lanes;
  const int size = rows.count <= lanes ? 0 : 1;
  const int64_t height = int64_t{lanes} * kVectors[size];
  const int64_t tiles = (rows.count + height - 1) / height;
  const int64_t work = static_cast<int64_t>(w.values.size()) * kVectors[size];
  auto fill = [&](int64_t tile, Cell* columns, int64_t begin, int64_t end) {
    for (int64_t first = 0; first < height; first += lanes) {
      const int64_t row = tile * height + first;
      const int64_t count = std::clamp<int64_t>(rows.count - row, 0, lanes);
      uint8_t* padded = inputs_ % kQuad
                            ? scratch().outputs.bytes(static_cast<size_t>(lanes * w.inputs * kQuad))
                            : nullptr;
      const uint8_t* from =
          in_quads(rows.x + row * inputs_ * (count > 0), count, begin, end, padded);
      simd.to_columns(reinterpret_cast<const float*>(from), w.inputs, count, end - begin,
                      reinterpret_cast<float*>(columns + begin * height + first), height);
    }
  };
  share_tiles<Cell>(call, {tiles, w.inputs, height, w.groups, work / kTaskQuads}, fill,
                    [&](int64_t index, const Cell* columns, int64_t begin, int64_t end) {
                      tile(rows, columns, size, index * height, begin, end);
                    });
}

void QuadLinear::tile(const LinearRows& rows, const Cell* columns, int size, int64_t first,
                           int64_t output_begin, int64_t output_end) const {
  const QuadKernels& quads = simd_kernels().quads;
  const RangedBlocks<Cell>& w = tiled_[size];
  const int64_t groups = weights_.blocks.groups;
  const int64_t height = int64_t{quads.strips.lanes} * kVectors[size];
  const int64_t count = std::min(rows.count - first, height);
  const int64_t step = std::max<int64_t>(kSumsBytes / (height * 4), 16);
  int32_t* sums = scratch().sums.cells(static_cast<size_t>(step * height));
  uint8_t* bytes =
      output_.in_floats() ? nullptr : scratch().outputs.bytes(static_cast<size_t>(step * height));
  for (int64_t output = output_begin; output < output_end; output += step) {
    QuadStrip strip = strip_of(output, std::min(step, output_end - output));
    strip.values = w.values.data();
    strip.offsets = w.indices.data();
    strip.sums = sums;
    strip.sums_stride = height;
    strip.out = bytes;
    strip.out_stride = height;
    for (int64_t range = 0; range < w.ranges; ++range) {
      strip.starts = w.starts.data() + range * (groups + 1) + output;
      strip.base = reinterpret_cast<const char*>(columns + range * w.width * height);
      strip.first = range == 0;
      strip.last = range + 1 == w.ranges && !output_.in_floats();
      quads.strips.run[kVectors[size]](strip);
    }
    if (output_.in_floats()) {
      output_.finish_columns(sums, height, first, count, output, strip.outputs, rows);
      continue;
    }
    simd_kernels().bytes.transpose(bytes, height, strip.outputs, count,
                                   rows.bytes + first * weights_.blocks.outputs + output,
                                   weights_.blocks.outputs);
  }
}

}  // namespace mfac
