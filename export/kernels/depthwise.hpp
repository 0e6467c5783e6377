// The interface of depthwise convolutions to an instruction set: each output channel reads one
// input channel, in a square window without dilations.
#pragma once

#include <cstdint>

#include "quads.hpp"

namespace mfac {

constexpr int kDepthwiseKernels = 2;  // 3x3, 5x5
constexpr int kDepthwiseStrides = 2;  // 1, 2
// Pixels that may be read before and after the channels. They have no influence.
constexpr int64_t kDepthwiseReach = 48;
// Sums of bytes that are computed at a time, at most.
constexpr int64_t kDepthwiseBytes = 64;

// Bytes with their padding, where every tap of all outputs is one shift. A row's positions beyond its
// outputs are computed and left out.
struct StagedBytes {
  int64_t row;       // bytes from row to row, a multiple of the stride
  int64_t phase;     // bytes of the rows that leave the same rest when divided by the stride
  int64_t channel;   // bytes from channel to channel
  int64_t run;       // sums of a channel, with those left out and up to a whole vector
  int64_t together;  // channels that are staged before the first one is computed
  uint8_t* staged;   // [together, channel], and room for what the last vector reads beyond
  uint8_t* out;      // [together, run]
};

// Some channels, floats or unsigned bytes, one after the other.
template <class Pixel>
struct Depthwise {
  const Pixel* from;  // [channels, height, width]
  Pixel* to;          // [channels, to_height, to_width]
  const Pixel* end;   // of what may be written; what lies before it and after a channel may be
                      // overwritten before that channel's turn
  int64_t channels, height, width, to_height, to_width, kernel;
  int64_t top, left, bottom, right;  // padding, smaller than the kernel
  int32_t* edges;        // room for (kernel + 1) * (to_width + kDepthwiseReach)
  const float* zeros;    // [kDepthwiseReach + width + kDepthwiseReach]; of floats
  float* staged;         // room for a channel with its padding and kDepthwiseReach; of bytes
  StagedBytes bytes;     // the same for kernels that read bytes as they are
  float around;          // what lies outside of an image of bytes
  const float* weights;  // [channels, kernel, kernel]
  const Cell* cells;     // [channels, kernel, quads_of(kernel)] the same, of bytes
  int64_t step;          // from one channel to the next of what follows
  const float* bias;     // [channels], of floats
  float low, high;       // clip, of floats
  const int32_t* begin;  // [channels] initial value of each sum, of bytes
  const float* scales;   // [channels], of bytes
  Requantise requantise;
};

template <class Pixel>
using DepthwiseFunction = void (*)(const Depthwise<Pixel>&);

struct DepthwiseKernels {
  DepthwiseFunction<float> floats[kDepthwiseKernels][kDepthwiseStrides];
  DepthwiseFunction<uint8_t> bytes[kDepthwiseKernels][kDepthwiseStrides];
  bool stages_bytes;  // whether those of bytes take StagedBytes and cells, not floats
};

}  // namespace mfac
