// Sparse weights as stored in a model file, read and checked once when a session is created.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ort.hpp"

namespace mfac {

// Block-CSR: groups of `block` consecutive outputs share a list of inputs. If a value is a quad of
// weights (quads.hpp), an input is a quad of activations.
template <class Value>
struct PackedBlocks {
  int64_t outputs = 0;  // of one convolution group
  int64_t inputs = 0;   // that each output could read
  int64_t parts = 1;    // convolution groups, one after the other
  int64_t block = 1;
  int64_t groups = 0;            // of outputs, in one part
  std::vector<int32_t> starts;   // [parts * groups + 1]
  std::vector<int32_t> indices;  // [blocks], ascending within a group
  std::vector<Value> values;     // [blocks, block]
  std::vector<Value> bias;       // [parts, groups * block], zero where there is none
  bool has_bias = false;
};
using PackedWeights = PackedBlocks<float>;

enum Input : size_t { kX, kValues, kIndices, kStarts, kBias, kResidual };
constexpr std::array<ort::ElementType, 6> kFloatTypes = {ort::kFloat, ort::kFloat, ort::kInt32,
                                                         ort::kInt32, ort::kFloat, ort::kFloat};

// Read starts and indices for the outputs, inputs and parts that are set. Throws Refusal.
template <class Value>
void read_blocks(const NodeInfo& node, PackedBlocks<Value>& weights);

// Read inputs 1 ... 4 of a node. Throws Refusal if anything does not fit.
PackedWeights read_weights(const NodeInfo& node, int64_t outputs, int64_t inputs, int64_t parts);

// The same weights, ordered by ranges of their inputs, so that one range's activations stay in the
// L1 cache: all groups of range 0, then all groups of range 1.
template <class Value>
struct RangedBlocks {
  std::vector<int32_t> starts;   // [ranges, groups + 1]
  std::vector<int32_t> indices;  // [blocks]
  std::vector<Value> values;     // [blocks, block]
  int64_t ranges = 1;
  int64_t width = 0;  // inputs in a range
};
using RangedWeights = RangedBlocks<float>;
// part: which convolution group; width: inputs in a range; multiple: to which the blocks of each
// group in a range are filled up, with zeros for the range's first input.
template <class Value>
RangedBlocks<Value> by_ranges(const PackedBlocks<Value>& weights, int64_t part, int64_t width,
                              int64_t multiple = 1);

// Ranges of inputs whose columns, of `rows` activations, take about `bytes`; the indices are then
// bytes from the range's first column.
template <class Value>
RangedBlocks<Value> by_columns(const PackedBlocks<Value>& weights, int64_t rows, int64_t bytes);

// Add one output's weights to a dense array: dense[inputs].
void unpack_output(const PackedWeights& weights, int64_t part, int64_t output, float* dense);

}  // namespace mfac
