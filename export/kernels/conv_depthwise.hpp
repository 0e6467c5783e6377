// Depthwise convolutions of images in nchw, of floats or of unsigned bytes. Every tap is computed,
// whether its weight is stored or not, so NaN and infinities come out as of a dense convolution.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "depthwise.hpp"
#include "ort.hpp"

namespace mfac {

// Whether the kernels take a convolution: each output reads a channel of its own, in a window of
// 3x3 or 5x5 pixels, with strides of 1 or 2.
bool is_depthwise(int64_t channels, int64_t outputs, int64_t parts, const Window& window);

// Compute channels [first, first + count) of an image, which lie in a buffer with kDepthwiseReach
// floats around them. y: the whole image's output.
void run_depthwise_channels(const Depthwise<float>& all, const Window& window, const Images& input,
                            const Images& output, int64_t first, int64_t count, const float* from,
                            float* y);

// Compute the channels of all images. `all` has what does not depend on the input: weights and what
// belongs to each channel.
template <class Pixel>
void run_depthwise(const Call& call, const Depthwise<Pixel>& all, const Window& window,
                   const Images& input, const Images& output, int64_t images, const Pixel* x,
                   Pixel* y);

}  // namespace mfac
