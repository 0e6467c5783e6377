// Convolutions of inputs that are NaN or infinite.
#include <algorithm>

#include "conv.hpp"
#include "scratch.hpp"

namespace mfac {
namespace {

float clipped(float y, const Activation& activation) {
  y = y < activation.low ? activation.low : y;
  return y > activation.high ? activation.high : y;
}

}  // namespace

// Pixels that are read in place are checked tile by tile: those of a tile are about to be read.
void Conv::check_tile(const Batch& batch, const float* pixels, const Tile& tile) const {
  const Runs& runs = batch.plan->runs;
  const int64_t count = std::min(tile.length, runs.length - tile.first);
  if (!simd_kernels().rows_finite(pixels + tile.first, runs.channel_stride, channels_, count))
    batch.bad_input.store(true, std::memory_order_relaxed);
}

// Images with a NaN or an infinity: 0 * NaN is NaN, so weights that are not stored count as well.
void Conv::run_dense(const Batch& batch) const {
  const ConvPlan& plan = *batch.plan;
  const Images& in = plan.input;
  const Images& out = plan.output;
  float* w = scratch().columns.floats(static_cast<size_t>(weights_.inputs));
  const int64_t channels = channels_ / parts_;
  for (int64_t image = 0; image < batch.count; ++image) {
    const float* x = batch.x + image * in.image_stride();
    if (simd_kernels().all_finite(x, in.image_stride())) continue;
    for (int64_t o = 0; o < out.channels; ++o) {
      const int64_t part = o / weights_.outputs;
      unpack_output(weights_, part, o % weights_.outputs, w);
      const float bias =
          weights_.bias[part * weights_.groups * weights_.block + o % weights_.outputs];
      const int64_t channel = out.offset(image, o);
      const int64_t there = batch.residuals.offset(image, o);
      for (int64_t row = 0; row < out.height; ++row) {
        for (int64_t column = 0; column < out.width; ++column) {
          float sum = bias;
          for (int64_t i = 0; i < weights_.inputs; ++i) {
            const int64_t tap = i % window_.taps();
            const int64_t iy = row * window_.strides[0] - window_.pads[0] +
                               tap / window_.kernel[1] * window_.dilations[0];
            const int64_t ix = column * window_.strides[1] - window_.pads[1] +
                               tap % window_.kernel[1] * window_.dilations[1];
            if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
            const int64_t c = part * channels + i / window_.taps();
            sum += w[i] * batch.x[in.offset(image, c) + iy * in.row_stride() + ix];
          }
          const int64_t at = channel + row * out.row_stride() + column;
          if (batch.residual)
            sum += batch.residual[there + row * batch.residuals.row_stride() + column];
          batch.y[at] = clipped(sum, activation_);
        }
        activation_.apply_gelu(batch.y + channel + row * out.row_stride(), out.width);
      }
    }
  }
}

}  // namespace mfac
