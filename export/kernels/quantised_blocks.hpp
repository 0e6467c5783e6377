// The interface of quantised operators with blocks of outputs to an instruction set.
//
// A block is one input of four consecutive outputs. Activations are bytes, [inputs, positions]. A
// step takes four inputs of a group of outputs, whichever they are: their bytes are interleaved, so
// that a 32-bit lane holds the four of one position, and serve all four outputs.
#pragma once

#include <cstdint>

#include "quads.hpp"

namespace mfac {

constexpr int64_t kBlockOutputs = 4;
constexpr int64_t kStepInputs = 4;

struct alignas(32) ByteStep {
  int32_t offsets[kStepInputs];  // bytes from base
  Cell cells[kBlockOutputs];     // the weights of each output, in the order of the offsets
};

// How bytes of a residual r are added to bytes t, in integers:
//
//   clip((t * factor + r * residual_factor + offset) >> shift, low, high)
struct ByteAddition {
  int16_t factor, residual_factor;  // not negative
  int32_t offset;
  int shift;
  uint8_t low, high;
};

// Sums over the steps for a strip of positions that are contiguous in memory.
//
//   out[o][p] = requantised(begin[o] + sum over the steps i of o's group, and its inputs k:
//                           cells[i][o][k] * base[offsets[i][k] + p])
//
// and then, with a residual, residual[o][p] is added.
struct ByteStrip {
  const ByteStep* steps;
  const int32_t* starts;  // [groups + 1] into steps
  const uint8_t* base;
  uint8_t* out;   // [outputs, out_stride]
  int32_t* sums;  // if not null, written instead of `out`, as they are and with its stride
  int64_t out_stride;
  int64_t groups;
  int64_t outputs;       // the last group may extend beyond them
  const int32_t* begin;  // [groups * 4] initial value of each sum
  const float* scales;   // [groups * 4]
  Requantise requantise;
  const uint8_t* residual;  // [outputs, residual_stride]; null if nothing is added
  int64_t residual_stride;
  ByteAddition addition;
};
using ByteStripFunction = void (*)(const ByteStrip&);

constexpr int kMaxByteWidths = 3;

// Strips of several widths, the widest first.
struct ByteStripTable {
  int count;
  int64_t positions[kMaxByteWidths];
  ByteStripFunction run[kMaxByteWidths];
};

// to[c][above + r][before + i] = from[c][r][i * step] for r < rows and i < count; else `around`.
struct ByteCopy {
  const uint8_t* from;
  int64_t from_channel, from_stride;
  uint8_t* to;
  int64_t to_channel, to_stride;  // all of a stride is written
  int64_t channels;
  int64_t above, rows, below;
  int64_t step, before, count;
  uint8_t around;
};

struct ByteKernels {
  ByteStripTable strips;
  // sums[o] = begin[o] + the sum over the steps, for one row at base and all outputs of the groups.
  void (*row)(const ByteStrip& strip, int32_t* sums);
  void (*copy_channels)(const ByteCopy& copy);
  // to[r][i] = from[r][i] for i < count.
  void (*gather)(const uint8_t* from, int64_t from_stride, int64_t rows, int64_t count, uint8_t* to,
                 int64_t to_stride);
  // to[c][r] = from[r][c] for r < rows and c < width.
  void (*transpose)(const uint8_t* from, int64_t from_stride, int64_t rows, int64_t width,
                    uint8_t* to, int64_t to_stride);
};

}  // namespace mfac
