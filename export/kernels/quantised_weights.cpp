#include "quantised_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mfac {
namespace {

constexpr int64_t kMaxFactor = (1 << 15) - 1, kMaxOffset = (int64_t{1} << 31) - (1 << 25);

// Visit each stored weight: visit(its place in a list of outputs that is padded to whole blocks, its
// channel, its value).
template <class Visit>
void each_weight(const PackedBlocks<Cell>& w, QuantisedFormat format, int64_t taps,
                 const Visit& visit) {
  const auto* values = reinterpret_cast<const int8_t*>(w.values.data());
  for (int64_t group = 0; group < w.parts * w.groups; ++group)
    for (int64_t i = w.starts[group]; i < w.starts[group + 1]; ++i)
      for (int64_t k = 0; k < kQuad; ++k) {
        const int64_t channel = w.indices[i] / taps;
        if (format == QuantisedFormat::kQuads)
          visit(group, channel * kQuad + k, values[i * kQuad + k]);
        else
          visit(group * kQuad + k, channel, values[i * kQuad + k]);
      }
}

void read_values(const NodeInfo& node, PackedBlocks<Cell>& w) {
  const Tensor values = node.constant(kValues, "values", ort::kInt8, false);
  require(values.shape.rank == 2 &&
              values.shape.dims[0] == static_cast<int64_t>(w.indices.size()) &&
              values.shape.dims[1] == kQuad,
          "values must be [indices, 4]. Got ", values.shape);
  w.values.resize(w.indices.size());
  if (!w.values.empty()) std::memcpy(w.values.data(), values.data, w.values.size() * sizeof(Cell));
}

// One number an output, padded with zeros to whole blocks: [parts, groups * block].
template <class Number>
std::vector<Number> by_blocks(const Tensor& given, const char* name, const PackedBlocks<Cell>& w) {
  require(given.shape.rank == 1 && given.shape.dims[0] == w.parts * w.outputs, name,
          " must have one number an output. Got ", given.shape);
  std::vector<Number> all(static_cast<size_t>(w.parts * w.groups * w.block));
  const auto* each = static_cast<const Number*>(given.data);
  for (int64_t part = 0; part < w.parts; ++part)
    std::copy_n(each + part * w.outputs, w.outputs, all.begin() + part * w.groups * w.block);
  return all;
}

void read_scales(const NodeInfo& node, QuantisedWeights& w) {
  w.scales =
      by_blocks<float>(node.constant(kScales, "scales", ort::kFloat, false), "scales", w.blocks);
  for (float scale : w.scales)
    require(std::isfinite(scale) && scale >= 0, "scales must be finite and not negative");
}

// bias - x_zero_point * sum of the weights. Checks that no sum of bytes can overflow from there.
void read_beginnings(const NodeInfo& node, QuantisedWeights& w, QuantisedFormat format,
                     const QuantisedSize& size, SumsKind kind) {
  PackedBlocks<Cell>& blocks = w.blocks;
  const int64_t places = blocks.groups * blocks.block;  // of one part
  const Tensor bias = kind == SumsKind::kBytes
                          ? node.constant(kSumBias, "bias", ort::kInt32, true)
                          : Tensor{};
  blocks.has_bias = static_cast<bool>(bias);
  blocks.bias.resize(static_cast<size_t>(blocks.parts * places));
  if (bias) blocks.bias = by_blocks<int32_t>(bias, "bias", blocks);
  std::vector<int64_t> above(blocks.bias.size()), below(blocks.bias.size());
  each_weight(blocks, format, size.taps, [&](int64_t place, int64_t channel, int8_t value) {
    require(value == 0 || channel < size.channels, "values must be 0 beyond the last input");
    require(value == 0 || place % places < blocks.outputs,
            "values must be 0 beyond the last output");
    (value > 0 ? above : below)[place] += value;
  });
  for (size_t i = 0; i < blocks.bias.size(); ++i) {
    const int64_t begin = blocks.bias[i] - w.x_zero_point * (above[i] + below[i]);
    // All partial sums lie between these, in any order of addition.
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    require(std::max<int64_t>(begin, 0) + 255 * above[i] <= most &&
                std::min<int64_t>(begin, 0) + 255 * below[i] >= -most,
            "the sums of output ", static_cast<int64_t>(i), " must fit into 32 bits");
    blocks.bias[i] = static_cast<int32_t>(begin);
    const int64_t highest = std::max<int64_t>(begin, 0) + 255 * above[i];
    w.requantise.bounded &= static_cast<double>(highest) * w.scales[i] < 2e9;
  }
}

}  // namespace

uint8_t read_byte(const NodeInfo& node, const char* name) {
  const int64_t value = node.integer(name);
  require(value >= 0 && value <= 255, name, " must lie in [0, 255]. Got ", value);
  return static_cast<uint8_t>(value);
}

QuantisedFormat read_format(const NodeInfo& node) {
  if (!node.has("block")) return QuantisedFormat::kQuads;
  const int64_t block = node.integer("block");
  require(block == kQuad, "block must be 4, or not be given. Got ", block);
  return QuantisedFormat::kBlocks;
}

QuantisedWeights read_quantised(const NodeInfo& node, QuantisedFormat format,
                                const QuantisedSize& size, SumsKind kind) {
  QuantisedWeights w;
  require(size.channels >= 1 && size.channels <= std::numeric_limits<int32_t>::max(),
          "numbers of inputs and outputs must lie in [1, 2^31)");
  const bool quads = format == QuantisedFormat::kQuads;
  w.blocks.outputs = size.outputs;
  w.blocks.parts = size.parts;
  w.blocks.block = quads ? 1 : kQuad;
  require(!__builtin_mul_overflow(quads ? quads_of(size.channels) : size.channels, size.taps,
                                  &w.blocks.inputs),
          "in_channels times the kernel's size is too large");
  read_blocks(node, w.blocks);
  read_values(node, w.blocks);
  read_scales(node, w);
  w.x_zero_point = read_byte(node, "x_zero_point");
  w.requantise.bounded = true;
  read_beginnings(node, w, format, size, kind);
  if (kind != SumsKind::kBytes) return w;
  const int zero_point = read_byte(node, "y_zero_point");
  const int low = read_byte(node, "min");
  const int high = read_byte(node, "max");
  require(low <= high, "min must not be above max");
  w.requantise.low = static_cast<float>(low - zero_point);
  w.requantise.high = static_cast<float>(high - zero_point);
  w.requantise.zero_point = zero_point;
  return w;
}

ByteAddition read_addition(const NodeInfo& node) {
  const auto within = [&](const char* name, int64_t low, int64_t high) {
    const int64_t value = node.integer(name);
    require(value >= low && value <= high, name, " must lie in [", low, ", ", high, "]. Got ", value);
    return value;
  };
  ByteAddition add{};
  add.factor = static_cast<int16_t>(within("add_factor", 0, kMaxFactor));
  add.residual_factor = static_cast<int16_t>(within("add_residual_factor", 0, kMaxFactor));
  add.offset = static_cast<int32_t>(within("add_offset", -kMaxOffset, kMaxOffset));
  add.shift = static_cast<int>(within("add_shift", 0, 31));
  add.low = read_byte(node, "add_min");
  add.high = read_byte(node, "add_max");
  require(add.low <= add.high, "add_min must not be above add_max");
  return add;
}

}  // namespace mfac
