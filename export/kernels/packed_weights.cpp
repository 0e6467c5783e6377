#include "packed_weights.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "quads.hpp"

namespace mfac {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kSinglesAtOnce = 2;  // one left over would cost a branch that cannot be predicted

void check_rank(const Tensor& tensor, const char* name, size_t rank) {
  require(tensor.shape.rank == rank, name, " must have ", rank, " dimensions. Got ", tensor.shape);
}

std::vector<int32_t> read_ints(const NodeInfo& node, Input input, const char* name) {
  const Tensor tensor = node.constant(input, name, ort::kInt32, false);
  check_rank(tensor, name, 1);
  const auto* data = static_cast<const int32_t*>(tensor.data);
  return {data, data + tensor.shape.dims[0]};
}

void check_starts(const std::vector<int32_t>& starts, size_t blocks) {
  require(starts.front() == 0, "starts must begin with 0");
  require(std::is_sorted(starts.begin(), starts.end()), "starts must not fall");
  require(static_cast<size_t>(starts.back()) == blocks,
          "starts must end with the number of indices, ", blocks);
}

template <class Value>
void check_indices(const PackedBlocks<Value>& w) {
  for (size_t group = 0; group + 1 < w.starts.size(); ++group) {
    int64_t before = -1;
    for (int32_t i = w.starts[group]; i < w.starts[group + 1]; ++i) {
      require(w.indices[i] > before && w.indices[i] < w.inputs,
              "indices must rise within a group and lie in [0, ", w.inputs, "). Got ",
              w.indices[i]);
      before = w.indices[i];
    }
  }
}

void read_bias(const NodeInfo& node, PackedWeights& w) {
  w.bias.assign(static_cast<size_t>(w.parts * w.groups * w.block), 0.0f);
  const Tensor bias = node.constant(kBias, "bias", ort::kFloat, true);
  w.has_bias = static_cast<bool>(bias);
  if (!w.has_bias) return;
  check_rank(bias, "bias", 1);
  require(bias.shape.dims[0] == w.parts * w.outputs, "bias must have one number an output. Got ",
          bias.shape);
  for (int64_t part = 0; part < w.parts; ++part)
    std::copy_n(bias.floats() + part * w.outputs, w.outputs,
                w.bias.begin() + part * w.groups * w.block);
}

}  // namespace

template <class Value>
void read_blocks(const NodeInfo& node, PackedBlocks<Value>& w) {
  require(w.outputs >= 1 && w.outputs <= kLargest && w.inputs >= 1 && w.inputs <= kLargest &&
              w.parts >= 1 && w.parts <= kLargest,
          "numbers of inputs and outputs must lie in [1, 2^31)");
  w.groups = (w.outputs + w.block - 1) / w.block;
  w.starts = read_ints(node, kStarts, "starts");
  int64_t expected = 0;  // each factor is below 2^31
  require(!__builtin_mul_overflow(w.parts, w.groups, &expected) &&
              static_cast<int64_t>(w.starts.size()) == expected + 1,
          "starts must have one entry a group of outputs and one more");
  w.indices = read_ints(node, kIndices, "indices");
  check_starts(w.starts, w.indices.size());
  check_indices(w);
}

PackedWeights read_weights(const NodeInfo& node, int64_t outputs, int64_t inputs, int64_t parts) {
  PackedWeights w;
  w.outputs = outputs;
  w.inputs = inputs;
  w.parts = parts;
  w.block = node.integer("block");
  require(w.block == 1 || w.block == 4 || w.block == 8 || w.block == 16,
          "block must be 1, 4, 8 or 16. Got ", w.block);
  read_blocks(node, w);
  const Tensor values = node.constant(kValues, "values", ort::kFloat, false);
  check_rank(values, "values", 2);
  require(values.shape.dims[0] == static_cast<int64_t>(w.indices.size()) &&
              values.shape.dims[1] == w.block,
          "values must be [indices, block]. Got ", values.shape);
  w.values.assign(values.floats(), values.floats() + w.indices.size() * w.block);
  read_bias(node, w);
  return w;
}

template <class Value>
RangedBlocks<Value> by_ranges(const PackedBlocks<Value>& w, int64_t part, int64_t width,
                              int64_t multiple) {
  RangedBlocks<Value> ranged;
  ranged.width = width;
  ranged.ranges = (w.inputs + width - 1) / width;
  const int32_t* starts = w.starts.data() + part * w.groups;
  std::vector<int32_t> next(starts, starts + w.groups);
  for (int64_t range = 0; range < ranged.ranges; ++range) {
    const int64_t end = (range + 1) * width;
    for (int64_t group = 0; group < w.groups; ++group) {
      ranged.starts.push_back(static_cast<int32_t>(ranged.indices.size()));
      const int32_t first = next[group];
      while (next[group] < starts[group + 1] && w.indices[next[group]] < end) ++next[group];
      ranged.indices.insert(ranged.indices.end(), w.indices.begin() + first,
                            w.indices.begin() + next[group]);
      ranged.values.insert(ranged.values.end(), w.values.begin() + first * w.block,
                           w.values.begin() + next[group] * w.block);
      const int64_t spare = (multiple - (next[group] - first) % multiple) % multiple;
      ranged.indices.insert(ranged.indices.end(), spare, static_cast<int32_t>(range * width));
      ranged.values.insert(ranged.values.end(), spare * w.block, Value{});
    }
    ranged.starts.push_back(static_cast<int32_t>(ranged.indices.size()));
  }
  return ranged;
}

template <class Value>
RangedBlocks<Value> by_columns(const PackedBlocks<Value>& weights, int64_t rows, int64_t bytes) {
  const int64_t step = rows * static_cast<int64_t>(sizeof(Value));
  int64_t width = std::max<int64_t>(bytes / step, 16);
  // Each range costs a load and a store of every sum: it must contain a few blocks of each group.
  const int64_t stored = static_cast<int64_t>(weights.indices.size());
  const int64_t most = std::max<int64_t>(stored / (4 * weights.groups), 1);
  width = std::max(width, (weights.inputs + most - 1) / most);
  width = std::min(width, std::numeric_limits<int32_t>::max() / step);  // offsets have 32 bits
  const int64_t multiple = weights.block == 1 ? kSinglesAtOnce : 1;
  RangedBlocks<Value> ranged = by_ranges(weights, 0, width, multiple);
  for (int32_t& index : ranged.indices) index = static_cast<int32_t>(index % width * step);
  return ranged;
}

void unpack_output(const PackedWeights& w, int64_t part, int64_t output, float* dense) {
  std::memset(dense, 0, static_cast<size_t>(w.inputs) * sizeof(float));
  const int64_t group = part * w.groups + output / w.block;
  for (int32_t i = w.starts[group]; i < w.starts[group + 1]; ++i)
    dense[w.indices[i]] = w.values[i * w.block + output % w.block];
}

template void read_blocks(const NodeInfo&, PackedBlocks<Cell>&);
template RangedBlocks<float> by_ranges(const PackedBlocks<float>&, int64_t, int64_t, int64_t);
template RangedBlocks<Cell> by_ranges(const PackedBlocks<Cell>&, int64_t, int64_t, int64_t);
template RangedBlocks<float> by_columns(const PackedBlocks<float>&, int64_t, int64_t);
template RangedBlocks<Cell> by_columns(const PackedBlocks<Cell>&, int64_t, int64_t);

}  // namespace mfac
