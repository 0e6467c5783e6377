// The kernels' interface to an instruction set, as a table of functions.
//
// One set of templates (simd/*.hpp) is compiled once for each instruction set, into a namespace of
// its own; `simd_kernels` picks the best one that the processor supports. The environment variable
// MFAC_SPARSE_ISA (avx512vnni, avx512, avxvnni, avx2, portable), read once, picks a lower one, for
// tests.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention_tile.hpp"
#include "depthwise.hpp"
#include "norm_rows.hpp"
#include "quads.hpp"
#include "quantised_blocks.hpp"

namespace mfac {

// Sums over stored weights for a strip of positions that are contiguous in memory.
//
//   out[o][p] = f(start[o] + sum over the blocks i of o's group: values[i][o] * base[offsets[i] +
//   p])
//
// A group is `block` consecutive outputs that share their inputs.
struct Strip {
  const int32_t* offsets;  // [blocks] bytes from base
  const float* values;     // [blocks, block]
  const int32_t* starts;   // [groups + 1] into offsets
  const char* base;
  float* out;      // [outputs, stride]
  int64_t stride;  // floats
  int64_t group_begin, group_end;
  float* sums;            // [outputs, sums_stride] that wait between ranges, or null: in out
  int64_t sums_stride;
  // Floats by which the last of several vectors overlaps the one before: in out and the residual,
  // in the sums, and from base on.
  int64_t back, sums_back, base_back;
  int64_t outputs;        // the last group may extend beyond them
  const float* bias;      // [groups * block]
  const float* residual;  // like out, or null; added after the sums if `last` is set, else before
  const int32_t* keep;    // [positions] all ones, or all zeros to write 0; or null
  float low, high;        // clip
  bool first;             // start from the bias, not from the values in out
  bool last;              // apply clip and keep
  bool* not_finite;       // set where a last output is NaN or infinite; or null
  bool ends_rows;         // write zeros after each row (of a table of rows) or after the strip
};
using StripFunction = void (*)(const Strip&);

// to[c][r][before + i] = from[c][r][i * step] for i < count; zeros before and after, and in `above`
// rows above and `below` rows below.
struct RowCopy {
  const float* from;
  int64_t from_stride;  // floats from row to row
  float* to;            // the first row that has pixels
  int64_t to_stride;    // floats from row to row
  int64_t width;        // floats of a row that are written
  int64_t rows, step, before, count;
  int64_t above, below;
  int64_t channels, from_channel, to_channel;  // floats from channel to channel
};

// to[r][i] = clip(from[r][i] + residual[r][i]) for i < count, and `after` zeros behind them.
struct RowClip {
  const float* from;
  int64_t from_stride;  // floats from row to row
  const float* residual;  // or null
  int64_t residual_stride;
  float* to;
  int64_t to_stride;
  int64_t rows, count, after;
  float low, high;
};

constexpr int kBlockSizes = 4;  // 1, 4, 8, 16
constexpr int kMaxVectors = 16;
constexpr int kBetweenRows = 8;

// Strips of 1 ... longest vectors of `lanes` floats, for each block size.
struct StripTable {
  int lanes;
  int longest[kBlockSizes];
  StripFunction run[kBlockSizes][kMaxVectors + 1];
};

// rows[r][k] = clip(columns[k][r] + residual[r][k]), r < count; strides in floats.
using RowsFunction = void (*)(const float* columns, int64_t column_stride, int64_t count,
                              int64_t width, float* rows, const float* residual,
                              int64_t row_stride, float low, float high);

struct SimdKernels {
  const char* name;
  StripTable wide;    // for aligned rows
  StripTable narrow;  // for shifted runs, where a wide load crosses cache lines
  StripTable
      rows[3];  // as narrow, for whole rows of 8, 16, 32 floats with kBetweenRows between them
  // columns[k][r] = rows[r][k], r < count, and zeros up to whole vectors of rows; strides in floats.
  // Returns whether all are finite.
  bool (*to_columns)(const float* rows, int64_t row_stride, int64_t count, int64_t width,
                     float* columns, int64_t column_stride);
  RowsFunction to_rows;
  RowsFunction to_rows_gelu_erf, to_rows_gelu_tanh;  // of what to_rows writes
  void (*copy_rows)(const RowCopy& copy);
  // out[o] = clip(bias[o] + sum values * x + residual[o]) for one row x; offsets count floats.
  void (*row[kBlockSizes])(const Strip& strip);
  bool (*clip_rows)(const RowClip& rows);  // Returns whether all are finite.
  void (*gelu_erf)(float* values, int64_t count);
  void (*gelu_tanh)(float* values, int64_t count);
  bool (*all_finite)(const float* values, int64_t count);
  bool (*rows_finite)(const float* from, int64_t stride, int64_t rows, int64_t count);
  // out[i] = sums[i] * scale + bias, in place as well.
  void (*scale_sums)(const int32_t* sums, int64_t count, float scale, float bias, float* out);
  void (*scale_row)(const int32_t* sums, const float* scales, const float* bias, int64_t count,
                    float* out);
  // out[i] = round(clip(values[i] / scale)) + zero point; no value is NaN.
  void (*quantise)(const float* values, int64_t count, float scale, const Requantise& how,
                   uint8_t* out);
  void (*layer_norm)(const NormRows& rows);
  DepthwiseKernels depthwise;
  QuadKernels quads;
  ByteKernels bytes;
  AttentionKernels attention;
};

const SimdKernels& simd_kernels();
int block_class(int64_t block);  // 0 ... 3

}  // namespace mfac
