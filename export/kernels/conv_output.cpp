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

bool scatter(const float* sums, const Tile& tile, const ConvPlan& plan, float* out,
             Channel residual, const Activation& activation) {
  const Images& image = plan.output;
  const int64_t stride = plan.runs.row_stride;
  const int64_t end = std::min(tile.first + tile.length, plan.runs.length);
  const auto clip = simd_kernels().clip;
  bool finite = true;
  const int64_t begin = tile.first + tile.skip;
  for (int64_t row = begin / stride; row * stride < end; ++row) {
    const int64_t first = std::max(begin - row * stride, int64_t{0});
    const int64_t last = std::min(end - row * stride, image.width);
    if (first >= last) continue;
    const float* from = sums + row * stride - tile.first;
    const float* add = residual.pixels ? residual.pixels + row * residual.row_stride : nullptr;
    float* to = out + row * image.row_stride();
    finite &= clip(from + first, add ? add + first : nullptr, last - first, activation.low,
                   activation.high, to + first);
    activation.apply_gelu(to + first, last - first);
    if (last == image.width) std::fill(to + last, to + image.row_stride(), 0.0f);
  }
  return finite;
}

}  // namespace mfac
