// The interface of layer normalisation to an instruction set.
#pragma once

#include <cstdint>

#include "quads.hpp"

namespace mfac {

// z = (x - mean) / sqrt(variance + epsilon) * scale + bias, of each row by itself.
//
// Without `bytes`, y = z. With them, scale and bias are divided by the step, and
//
//   bytes = round(clip(z)) + zero point
//   y = (bytes - zero point) * step, if there is a y
struct NormRows {
  const float* x;  // [rows, count]; not y
  int64_t rows, count;
  const float* scale;  // [count]
  const float* bias;   // [count]
  float epsilon;
  float* y;        // like x; null with bytes only
  uint8_t* bytes;  // like x, or null
  Requantise how;  // bounds and zero point of the bytes
  float step;      // of the bytes
};

}  // namespace mfac
