// The interface of layer normalisation to an instruction set.
#pragma once

#include <cstdint>

#include "quads.hpp"

namespace mfac {

// z = (x - mean) / sqrt(variance + epsilon) * scale + bias, of each row by itself.
//
// Without `bytes` z is what is written to y. With them they are round(clip(z)) + zero point, and
// (byte - zero point) * step is written to y, if there is one.
struct NormRows {
  const float* x;  // [rows, count]; not y
  int64_t rows, count;
  const float* scale;  // [count]
  const float* bias;   // [count]
  float epsilon;
  float* y;        // like x; null with bytes only
  uint8_t* bytes;  // like x, or null
  Requantise how;
  float step;
};

}  // namespace mfac
