#include "conv_max_pool.hpp"

#include <algorithm>

#include "conv_shares.hpp"
#include "scratch.hpp"

namespace mfac {
namespace {

void largest(const uint8_t* from, int64_t step, int64_t count, uint8_t* to) {
  if (step == 1)  // compiled to whole vectors
    for (int64_t i = 0; i < count; ++i) to[i] = std::max(to[i], from[i]);
  else if (step == 2)
    for (int64_t i = 0; i < count; ++i) to[i] = std::max(to[i], from[2 * i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = std::max(to[i], from[step * i]);
}

// Rows first, then columns. Padding is 0, which is never larger than a byte.
void pool_channel(const uint8_t* x, const Images& input, const Window& w, const Images& output,
                  uint8_t* line, uint8_t* y) {
  for (int64_t row = 0; row < output.height; ++row, y += output.width) {
    const int64_t top = row * w.strides[0] - w.pads[0];
    const int64_t end = std::min(top + w.kernel[0], input.height);
    std::fill_n(line, w.pads[1] + input.width + w.pads[3], uint8_t{0});
    for (int64_t r = std::max<int64_t>(top, 0); r < end; ++r)
      largest(x + r * input.width, 1, input.width, line + w.pads[1]);
    std::fill_n(y, output.width, uint8_t{0});
    for (int64_t column = 0; column < w.kernel[1]; ++column)
      largest(line + column, w.strides[1], output.width, y);
  }
}

}  // namespace

ConvMaxPool::ConvMaxPool(const NodeInfo& node) : conv_(node), window_(read_pool_window(node)) {
  require(!read_window(node).line, "kernel_shape must have 2 numbers");
}

void ConvMaxPool::run(const Call& call) const {
  uint8_t* between = nullptr;
  int64_t count = 0;
  Images input, output;
  uint8_t* y = nullptr;
  conv_.run(call, [&](const Shape& shape) {
    input = read_images(shape, shape.dims[1], window_, false, &count);
    output = output_images(input, window_, input.channels, false);
    y = call.output_bytes(output.shape(count));
    return between = scratch().between.bytes(static_cast<size_t>(element_count(shape)));
  });
  const int64_t channels = count * input.channels;
  if (channels == 0) return;
  in_parts(&call, channels, channels * input.channel_stride(), [&](int64_t first, int64_t end) {
    uint8_t* line = scratch().columns.bytes(
        static_cast<size_t>(window_.pads[1] + input.width + window_.pads[3]));
    for (int64_t c = first; c < end; ++c)
      pool_channel(between + c * input.channel_stride(), input, window_, output, line,
                   y + c * output.channel_stride());
  });
}

}  // namespace mfac
