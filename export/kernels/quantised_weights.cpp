#include "quantised_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mfac {
namespace {

uint8_t read_byte(const NodeInfo& node, const char* name) {
  const int64_t value = node.integer(name);
  require(value >= 0 && value <= 255, name, " must lie in [0, 255]. Got ", value);
  return static_cast<uint8_t>(value);
}

void read_values(const NodeInfo& node, PackedBlocks<Cell>& w, int64_t channels, int64_t taps) {
  const Tensor values = node.constant(kValues, "values", ort::kInt8, false);
  require(values.shape.rank == 2 &&
              values.shape.dims[0] == static_cast<int64_t>(w.indices.size()) &&
              values.shape.dims[1] == kQuad,
          "values must be [indices, 4]. Got ", values.shape);
  w.values.resize(w.indices.size());
  if (!w.values.empty()) std::memcpy(w.values.data(), values.data, w.values.size() * sizeof(Cell));
  const auto* each = static_cast<const int8_t*>(values.data);
  for (size_t i = 0; i < w.indices.size(); ++i) {
    const int64_t first = w.indices[i] / taps * kQuad;
    for (int64_t q = channels - first; q < kQuad; ++q)
      require(each[i * kQuad + q] == 0, "values must be 0 beyond the last input");
  }
}

void read_scales(const NodeInfo& node, QuantisedWeights& w) {
  const int64_t outputs = w.blocks.parts * w.blocks.outputs;
  const Tensor scales = node.constant(kScales, "scales", ort::kFloat, false);
  require(scales.shape.rank == 1 && scales.shape.dims[0] == outputs,
          "scales must have one number an output. Got ", scales.shape);
  w.scales.assign(scales.floats(), scales.floats() + outputs);
  for (float scale : w.scales)
    require(std::isfinite(scale) && scale >= 0, "scales must be finite and not negative");
}

// bias - x_zero_point * sum of the weights. Checks that no sum of bytes can overflow from there.
void read_beginnings(const NodeInfo& node, QuantisedWeights& w) {
  PackedBlocks<Cell>& blocks = w.blocks;
  const int64_t outputs = blocks.parts * blocks.outputs;
  const Tensor bias = node.constant(kSumBias, "bias", ort::kInt32, true);
  blocks.has_bias = static_cast<bool>(bias);
  require(!bias || (bias.shape.rank == 1 && bias.shape.dims[0] == outputs),
          "bias must have one number an output. Got ", bias.shape);
  blocks.bias.resize(static_cast<size_t>(outputs));
  const auto* each = reinterpret_cast<const int8_t*>(blocks.values.data());
  for (int64_t output = 0; output < outputs; ++output) {
    int64_t above = 0;
    int64_t below = 0;
    for (int64_t i = kQuad * blocks.starts[output]; i < kQuad * blocks.starts[output + 1]; ++i)
      (each[i] > 0 ? above : below) += each[i];
    const int64_t begin = (bias ? static_cast<const int32_t*>(bias.data)[output] : 0) -
                          w.x_zero_point * (above + below);
    // All partial sums lie between these, in any order of addition.
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    require(std::max<int64_t>(begin, 0) + 255 * above <= most &&
                std::min<int64_t>(begin, 0) + 255 * below >= -most,
            "the sums of output ", output, " must fit into 32 bits");
    blocks.bias[output] = static_cast<int32_t>(begin);
  }
}

}  // namespace

QuantisedWeights read_quantised(const NodeInfo& node, int64_t outputs, int64_t channels,
                                int64_t taps, int64_t parts) {
  QuantisedWeights w;
  require(channels >= 1 && channels <= std::numeric_limits<int32_t>::max(),
          "numbers of inputs and outputs must lie in [1, 2^31)");
  w.blocks.outputs = outputs;
  w.blocks.parts = parts;
  require(!__builtin_mul_overflow(quads_of(channels), taps, &w.blocks.inputs),
          "in_channels times the kernel's size is too large");
  read_blocks(node, w.blocks);
  read_values(node, w.blocks, channels, taps);
  read_scales(node, w);
  w.x_zero_point = read_byte(node, "x_zero_point");
  read_beginnings(node, w);
  const int zero_point = read_byte(node, "y_zero_point");
  const int low = read_byte(node, "min");
  const int high = read_byte(node, "max");
  require(low <= high, "min must not be above max");
  w.requantise = {static_cast<float>(low - zero_point), static_cast<float>(high - zero_point),
                  zero_point};
  return w;
}

}  // namespace mfac
