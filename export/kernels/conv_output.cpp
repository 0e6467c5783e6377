#include "conv_output.hpp"

#include <algorithm>

namespace mfac {

void clear_borders(const Images& image, float* pixels, int64_t channels, bool above, bool below) {
  const int64_t inside = (image.height - 1) * image.row_stride() + image.width;
  for (int64_t c = 0; c <= channels; ++c, pixels += image.channel_stride()) {
    const int64_t before = above && c < channels ? image.origin() : 0;
    const int64_t after = below && c > 0 ? image.channel_stride() - image.origin() - inside : 0;
    std::fill(pixels - image.origin() - after, pixels - image.origin() + before, 0.0f);
  }
}

bool scatter(const float* sums, int64_t outputs, const Tile& tile, const ConvPlan& plan, float* out,
             const Channels& residual, const Activation& activation) {
  const Images& image = plan.output;
  const int64_t stride = plan.runs.row_stride;
  const int64_t begin = tile.first + tile.skip;
  const int64_t end = std::min(tile.first + tile.length, plan.runs.length);
  bool finite = true;
  for (int64_t row = begin / stride; row * stride < end; ++row) {
    const int64_t first = std::max(begin - row * stride, int64_t{0});
    const int64_t last = std::min(end - row * stride, image.width);
    if (first >= last) continue;
    // The same part of a row of all outputs: equal lengths, which the processor predicts.
    float* to = out + row * image.row_stride() + first;
    const float* add =
        residual.pixels ? residual.pixels + row * residual.row_stride + first : nullptr;
    const int64_t after = last == image.width ? image.between_rows() : 0;
    finite &= simd_kernels().clip_rows(
        {sums + row * stride - tile.first + first, whole_lines(tile.length), add,
         residual.channel_stride, to, image.channel_stride(), outputs, last - first, after,
         activation.low, activation.high});
    for (int64_t o = 0; activation.gelu && o < outputs; ++o)
      activation.apply_gelu(to + o * image.channel_stride(), last - first);
  }
  return finite;
}

}  // namespace mfac
