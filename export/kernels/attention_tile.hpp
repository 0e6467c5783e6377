// The interface of attention to an instruction set.
//
// A tile is some queries of a head, as columns: its scores are [keys, height], a column for each
// query, so that the softmax needs no sums across a vector.
#pragma once

#include <cstdint>

namespace mfac {

// out[o][p] = sum over k of weights[o * output_stride + k * input_stride] * columns[k][p]
struct Product {
  const float* weights;
  int64_t output_stride, input_stride;  // floats
  int64_t outputs, inputs;
  const float* columns;  // [inputs, height]
  float* out;            // [outputs, height]
  int64_t height;
  float* largest;  // [height] the largest of each column of out; or null
};

// scores = e^(scale * score + mask - the largest of these in their column), and each column's sum.
struct Scores {
  float* scores;  // [keys, height]
  int64_t keys, height;
  float scale;            // positive
  const float* largest;   // [height] of the scores as given; NaN is never the largest
  const float* key_mask;  // [keys], or null
  const float* mask;      // [keys, height], or null
  bool nan_to_zero;       // columns with a NaN become zeros
  float* sums;            // [height]
};

constexpr int kMaxAttentionVectors = 4;

struct AttentionKernels {
  // For tiles of 1 ... `vectors` vectors of the widest kind.
  struct Width {
    void (*product)(const Product& product);
    void (*exponentials)(const Scores& scores);
  };
  int vectors;
  Width width[kMaxAttentionVectors + 1];
  // values[r][c] /= divisors[c]
  void (*divide_columns)(float* values, int64_t rows, int64_t height, const float* divisors);
};

}  // namespace mfac
