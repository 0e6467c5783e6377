// How a convolution's results get to where they belong.
#pragma once

#include "activation.hpp"
#include "conv_plan.hpp"

namespace mfac {

// Zeros above the first of some channels of planes, between them, and below the last.
void clear_borders(const Images& image, float* pixels, int64_t channels, bool above, bool below);

// Where one channel's first pixel is, and how far it is to the row below.
struct Channel {
  const float* pixels;
  int64_t row_stride;
};

// Write a strip's valid pixels where they belong, row by row. Tells whether all are finite.
bool scatter(const float* sums, const Tile& tile, const ConvPlan& plan, float* out,
             Channel residual, const Activation& activation);

}  // namespace mfac
