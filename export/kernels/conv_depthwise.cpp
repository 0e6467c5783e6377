// 3x3 convolutions in which each output reads one channel of its own, from nchw to nchw.
#include <algorithm>

#include "conv.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {

// All nine weights of each channel, whether they are stored or not: so NaN and infinities come out as
// of a dense convolution. Empty if the convolution is another.
std::vector<float> Conv::depthwise_weights() const {
  bool fits = channels_ == parts_ && weights_.outputs == 1 && !window_.line;
  fits = fits && !input_planes_ && !output_planes_ && !residual_planes_;
  for (int axis = 0; axis < 2; ++axis)
    fits = fits && window_.kernel[axis] == 3 && window_.dilations[axis] == 1 &&
           window_.strides[axis] == window_.strides[0] && window_.strides[axis] <= 2;
  std::vector<float> all;
  if (!fits) return all;
  all.resize(static_cast<size_t>(parts_ * kTaps));
  for (int64_t part = 0; part < parts_; ++part)
    unpack_output(weights_, part, 0, all.data() + part * kTaps);
  return all;
}

void Conv::run_depthwise(const Call& call, const Batch& batch, const Images& input,
                         const Images& output) const {
  const int64_t channels = batch.count * channels_;
  const int64_t work = channels * output.channel_stride() * kTaps;
  const int64_t tasks = std::min(channels, std::clamp<int64_t>(work / kTaskWork, 1, 16));
  auto task = [&](size_t index) {
    const int64_t i = static_cast<int64_t>(index);
    Depthwise d{};
    d.height = input.height;
    d.width = input.width;
    d.to_height = output.height;
    d.to_width = output.width;
    d.stride = window_.strides[0];
    d.top = window_.pads[0];
    d.left = window_.pads[1];
    d.low = activation_.low;
    d.high = activation_.high;
    d.rows = scratch().columns.floats(static_cast<size_t>(4 * d.stride * (output.width + 2)));
    for (int64_t c = channels * i / tasks; c < channels * (i + 1) / tasks; ++c) {
      const int64_t channel = c % channels_;
      d.from = batch.x + c * input.channel_stride();
      d.to = batch.y + c * output.channel_stride();
      d.residual = batch.residual ? batch.residual + c * output.channel_stride() : nullptr;
      std::copy_n(depthwise_.data() + channel * kTaps, kTaps, d.weights);
      d.bias = weights_.bias[channel * weights_.block];
      simd_kernels().depthwise(d);
      activation_.apply_gelu(d.to, output.channel_stride());
    }
  };
  if (tasks > 0) call.parallel(static_cast<size_t>(tasks), task);
}

}  // namespace mfac
