#include "quantised_depthwise.hpp"

#include "conv_depthwise.hpp"

namespace mfac {

bool QuantisedDepthwise::fits(const NodeInfo& node) {
  return is_depthwise(node.integer("in_channels"), node.integer("out_channels"),
                      node.integer("group"), read_window(node));
}

QuantisedDepthwise::QuantisedDepthwise(const NodeInfo& node)
    : channels_(node.integer("group")),
      window_(read_window(node)),
      weights_(read_quantised(node, read_format(node), {1, 1, window_.taps(), channels_})),
      taps_(static_cast<size_t>(channels_ * window_.taps())),
      cells_(static_cast<size_t>(channels_ * window_.kernel[0] * quads_of(window_.kernel[1]))) {
  // One group of outputs a channel, whose indices are taps. In both formats the first of the four
  // values is the only one.
  const PackedBlocks<Cell>& blocks = weights_.blocks;
  const auto* values = reinterpret_cast<const int8_t*>(blocks.values.data());
  auto* cells = reinterpret_cast<int8_t*>(cells_.data());
  const int64_t width = window_.kernel[1];
  for (int64_t channel = 0; channel < channels_; ++channel)
    for (int64_t i = blocks.starts[channel]; i < blocks.starts[channel + 1]; ++i) {
      const int64_t tap = channel * window_.taps() + blocks.indices[i];
      taps_[tap] = values[i * kQuad];
      cells[tap / width * quads_of(width) * kQuad + tap % width] = values[i * kQuad];
    }
}

void QuantisedDepthwise::run(const Call& call) const {
  const Tensor x = call.input(kX, ort::kUint8);
  require(static_cast<bool>(x), "X must be there");
  require(weights_.blocks.has_bias || !call.input(kSumBias, ort::kInt32),
          "bias must be a constant initializer");
  int64_t images = 0;
  const Images input = read_images(x.shape, channels_, window_, false, &images);
  const Images output = output_images(input, window_, channels_, false);
  const Shape shape = output.shape(images);
  element_count(shape);
  Depthwise<uint8_t> all{};
  all.weights = taps_.data();
  all.cells = cells_.data();
  all.step = weights_.blocks.block;
  all.begin = weights_.blocks.bias.data();
  all.scales = weights_.scales.data();
  all.around = weights_.x_zero_point;
  all.requantise = weights_.requantise;
  run_depthwise(call, all, window_, input, output, images, x.bytes(), call.output_bytes(shape));
}

}  // namespace mfac
