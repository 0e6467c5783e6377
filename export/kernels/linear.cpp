#include "linear.hpp"

#include <algorithm>
#include <atomic>

#include "row_tiles.hpp"
#include "scratch.hpp"
#include "tiling.hpp"

namespace mfac {
namespace {

constexpr int64_t kRowsOneByOne = 3;       // up to so many rows a strip would be mostly empty
constexpr int64_t kTaskWork = 100000;      // multiply-adds that justify a thread

// Vectors of rows that a weight serves, each with a sum for every output of a block.
int strip_vectors(int64_t block) {
  const StripTable& wide = simd_kernels().wide;
  return std::min(block == 1 ? 4 : tiling().block_vectors, wide.longest[block_class(block)]);
}

}  // namespace

struct Linear::Rows {
  const float* x;
  float* y;
  const float* residual;
  int64_t count;
  // Whether x has a NaN or an infinity. Threads only set it, never clear it.
  mutable std::atomic<bool> not_finite{false};
};

struct Linear::RowTile {
  int size;       // which of the weights
  int64_t first;  // row
  int vectors;    // of rows
};

Linear::Linear(const NodeInfo& node)
    : weights_(read_weights(node, node.integer("out_features"), node.integer("in_features"), 1)),
      activation_(read_activation(node)) {
  const int lanes = simd_kernels().wide.lanes;
  vectors_[0] = 1;
  vectors_[1] = strip_vectors(weights_.block);
  // Single weights want their activations in the first cache; blocks use each of them several times,
  // and every range costs a load and a store of each sum.
  const int64_t bytes = weights_.block == 1 ? tiling().singles_range : tiling().blocks_range;
  for (int i = 0; i < 2; ++i) tiled_[i] = by_columns(weights_, lanes * vectors_[i], bytes);
}

void Linear::run(const Call& call) const {
  const Tensor x = call.input(kX);
  require(x && x.shape.rank >= 1 && x.shape.dims[x.shape.rank - 1] == weights_.inputs,
          "X must be [..., ", weights_.inputs, "]. Got ", x.shape);
  require(weights_.has_bias || !call.input(kBias), "bias must be a constant initializer");
  Shape shape = x.shape;
  shape.dims[shape.rank - 1] = weights_.outputs;
  const Tensor residual = call.input(kResidual);
  require(!residual || residual.shape == shape, "residual must have the output's shape ", shape,
          ". Got ", residual.shape);
  const int64_t values = element_count(x.shape);
  const Rows rows{x.floats(), call.output(shape), residual ? residual.floats() : nullptr,
                  values / weights_.inputs, {}};
  if (element_count(shape) == 0) return;
  if (rows.count <= kRowsOneByOne)
    run_rows(call, rows);
  else
    run_tiles(call, rows);
  if (rows.not_finite) run_dense(rows);
}

void Linear::run_rows(const Call& call, const Rows& rows) const {
  rows.not_finite = !simd_kernels().all_finite(rows.x, rows.count * weights_.inputs);
  const int64_t work = static_cast<int64_t>(weights_.values.size());
  const int64_t chunks =
      std::clamp<int64_t>(work / kTaskWork, 1, std::min<int64_t>(weights_.groups, 16));
  auto task = [&](size_t index) {
    const int64_t row = static_cast<int64_t>(index) / chunks;
    const int64_t chunk = static_cast<int64_t>(index) % chunks;
    Strip strip{};
    strip.offsets = weights_.indices.data();
    strip.values = weights_.values.data();
    strip.starts = weights_.starts.data();
    strip.base = reinterpret_cast<const char*>(rows.x + row * weights_.inputs);
    strip.out = rows.y + row * weights_.outputs;
    strip.group_begin = weights_.groups * chunk / chunks;
    strip.group_end = weights_.groups * (chunk + 1) / chunks;
    strip.outputs = weights_.outputs;
    strip.bias = weights_.bias.data();
    strip.residual = rows.residual ? rows.residual + row * weights_.outputs : nullptr;
    strip.low = activation_.low;
    strip.high = activation_.high;
    simd_kernels().row[block_class(weights_.block)](strip);
    const int64_t first = strip.group_begin * weights_.block;
    const int64_t end = std::min(strip.group_end * weights_.block, weights_.outputs);
    activation_.apply_gelu(strip.out + first, end - first);
  };
  call.parallel(static_cast<size_t>(rows.count * chunks), task);
}

// Columns of a tile have room for the longest strip; tiles are of about equal length.
void Linear::run_tiles(const Call& call, const Rows& rows) const {
  const SimdKernels& simd = simd_kernels();
  const int lanes = simd.wide.lanes;
  const int size = rows.count <= lanes ? 0 : 1;
  const int64_t height = int64_t{lanes} * vectors_[size];
  const int64_t vectors = (rows.count + lanes - 1) / lanes;
  const int64_t tiles = (vectors + vectors_[size] - 1) / vectors_[size];
  const int64_t work = static_cast<int64_t>(weights_.values.size()) * height;
  auto tile_at = [&](int64_t index) {
    const int64_t first = vectors * index / tiles;
    return RowTile{size, first * lanes, static_cast<int>(vectors * (index + 1) / tiles - first)};
  };
  auto fill = [&](int64_t index, float* columns, int64_t begin, int64_t end) {
    const RowTile tile = tile_at(index);
    const int64_t count = std::min(rows.count - tile.first, int64_t{lanes} * tile.vectors);
    if (!simd.to_columns(rows.x + tile.first * weights_.inputs + begin, weights_.inputs, count,
                         end - begin, columns + begin * height, height))
      rows.not_finite.store(true, std::memory_order_relaxed);
  };
  share_tiles<float>(call, {tiles, weights_.inputs, height, weights_.groups, work / kTaskWork},
                     fill, [&](int64_t index, const float* columns, int64_t begin, int64_t end) {
                       run_tile(rows, columns, tile_at(index), begin, end);
                     });
}

void Linear::run_tile(const Rows& rows, const float* columns, const RowTile& tile,
                      int64_t group_begin, int64_t group_end) const {
  const SimdKernels& simd = simd_kernels();
  const RangedWeights& w = tiled_[tile.size];
  const int64_t height = int64_t{simd.wide.lanes} * vectors_[tile.size];
  const StripFunction run = simd.wide.run[block_class(weights_.block)][tile.vectors];
  const int64_t step = std::max<int64_t>(tiling().sums / (height * 4 * weights_.block), 1);
  float* sums = scratch().sums.floats(static_cast<size_t>(step * weights_.block * height));
  const int64_t last = std::min(tile.first + int64_t{simd.wide.lanes} * tile.vectors, rows.count);
  for (int64_t group = group_begin; group < group_end; group += step) {
    const int64_t end = std::min(group + step, group_end);
    const int64_t output = group * weights_.block;
    Strip strip{};
    strip.values = w.values.data();
    strip.offsets = w.indices.data();
    strip.out = sums;
    strip.stride = height;
    strip.group_begin = 0;
    strip.group_end = end - group;
    strip.outputs = std::min(end * weights_.block, weights_.outputs) - output;
    strip.bias = weights_.bias.data() + output;
    for (int64_t range = 0; range < w.ranges; ++range) {
      strip.starts = w.starts.data() + range * (weights_.groups + 1) + group;
      strip.base = reinterpret_cast<const char*>(columns + range * w.width * height);
      strip.first = range == 0;
      run(strip);
    }
    const int64_t at = tile.first * weights_.outputs + output;
    activation_.to_rows(sums, height, last - tile.first, strip.outputs, rows.y + at,
                        rows.residual ? rows.residual + at : nullptr, weights_.outputs,
                        activation_.low, activation_.high);
  }
}

// Rows with a NaN or an infinity: 0 * NaN is NaN, so weights that are not stored count as well.
void Linear::run_dense(const Rows& rows) const {
  float* w = scratch().columns.floats(static_cast<size_t>(weights_.inputs));
  for (int64_t row = 0; row < rows.count; ++row) {
    const float* x = rows.x + row * weights_.inputs;
    if (simd_kernels().all_finite(x, weights_.inputs)) continue;
    float* y = rows.y + row * weights_.outputs;
    for (int64_t output = 0; output < weights_.outputs; ++output) {
      unpack_output(weights_, 0, output, w);
      float sum = weights_.bias[output];
      for (int64_t k = 0; k < weights_.inputs; ++k) sum += w[k] * x[k];
      if (rows.residual) sum += rows.residual[row * weights_.outputs + output];
      y[output] = sum < activation_.low    ? activation_.low
                  : sum > activation_.high ? activation_.high
                                           : sum;
    }
    activation_.apply_gelu(y, weights_.outputs);
  }
}

}  // namespace mfac
