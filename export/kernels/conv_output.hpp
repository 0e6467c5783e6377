// Writes a convolution's results to the output.
#pragma once

#include "activation.hpp"
#include "conv_plan.hpp"

namespace mfac {

// Write the zeros above, between and below some channels of planes.
void clear_borders(const Images& image, float* pixels, int64_t channels, bool above, bool below);

// The first pixel of some channels, and the distances to the row below and to the next channel.
struct Channels {
  const float* pixels;
  int64_t row_stride, channel_stride;
};

// Write a strip's valid pixels of some outputs, row by row. Returns whether all are finite.
bool scatter(const float* sums, int64_t outputs, const Tile& tile, const ConvPlan& plan, float* out,
             const Channels& residual, const Activation& activation);

}  // namespace mfac
