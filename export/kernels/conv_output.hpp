// Writes a convolution's results to the output.
#pragma once

#include "activation.hpp"
#include "conv_plan.hpp"

namespace mfac {

// Write the zeros above, between and below some channels of planes.
void clear_borders(const Images& image, float* pixels, int64_t channels, bool above, bool below);

// The address of one channel's first pixel, and the distance to the row below.
struct Channel {
  const float* pixels;
  int64_t row_stride;
};

// Write a strip's valid pixels to the output, row by row. Returns whether all are finite.
bool scatter(const float* sums, const Tile& tile, const ConvPlan& plan, float* out,
             Channel residual, const Activation& activation);

}  // namespace mfac
