// The interface of the quantised operators' kernels to an instruction set.
//
// A quad is four consecutive inputs: activations are four unsigned bytes in one 32-bit cell,
// weights four signed bytes. One instruction (VNNI) multiplies the four and adds up all products.
#pragma once

#include <cstdint>

namespace mfac {

constexpr int64_t kQuad = 4;
constexpr int64_t quads_of(int64_t inputs) { return inputs / kQuad + (inputs % kQuad != 0); }
using Cell = int32_t;  // a quad, in the order of memory

// How a sum becomes an unsigned byte: round(clip(sum * scale, low, high)) + zero_point.
struct Requantise {
  float low, high;  // minus the zero point
  int32_t zero_point;
  bool bounded;  // no sum times its scale can be above the integers of 32 bits
};

// Sums over stored quads for a strip of positions that are contiguous in memory.
//
//   out[o][p] = requantised(start[o] + sum over the quads i of o: values[i] . base[offsets[i] + p])
struct QuadStrip {
  const int32_t* offsets;  // [quads] bytes from base
  const Cell* values;      // [quads]
  const int32_t* starts;   // [outputs + 1] into offsets
  const char* base;        // cells
  int32_t* sums;           // [outputs, sums_stride]: partial sums kept between ranges
  int64_t sums_stride;
  uint8_t* out;  // [outputs, out_stride]
  int64_t out_stride;
  int64_t outputs;
  const int32_t* begin;  // [outputs] initial value of each sum
  const float* scales;   // [outputs]
  Requantise requantise;
  bool first, last;  // start from `begin`; write `out`
};
using QuadStripFunction = void (*)(const QuadStrip&);

constexpr int kMaxQuadVectors = 16;

// Strips of 1 ... longest vectors of `lanes` cells.
struct QuadStripTable {
  int lanes;
  int longest;
  QuadStripFunction run[kMaxQuadVectors + 1];
};

// to[r][before + i] = the bytes from[0 ... channels - 1][r][i * step] in one cell, for i < count;
// cells of `around` before and after.
struct QuadCopy {
  const uint8_t* from;
  int64_t channel_stride, row_stride;  // bytes
  int64_t channels;                    // 1 ... 4
  Cell* to;
  int64_t to_stride;  // all of it is written
  int64_t rows, step, before, count;
  uint8_t around;
};

struct QuadKernels {
  QuadStripTable strips;
  // sums[o] = begin[o] + sum of values . x for one row x of cells; offsets count bytes.
  void (*row)(const QuadStrip& strip);
  // out[i] = requantised(sums[i] * scales[i]).
  void (*requantise)(const int32_t* sums, const float* scales, int64_t count, Requantise how,
                     uint8_t* out);
  void (*copy_rows)(const QuadCopy& copy);
};

}  // namespace mfac
