// Weights of the quantised operators as stored in a model file, and the rounding of their sums.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "packed_weights.hpp"
#include "quads.hpp"
#include "quantised_blocks.hpp"

namespace mfac {

// What four stored weights, a cell, are:
//   kQuads: four inputs of one output: consecutive inputs of a matrix product, or consecutive
//     channels at one tap of a convolution. If their number is not a multiple of four, the last quad
//     is padded with zeros.
//   kBlocks: one input of four consecutive outputs, as block-CSR of floats has it.
enum class QuantisedFormat { kQuads, kBlocks };
QuantisedFormat read_format(const NodeInfo& node);

// What becomes of the sums, see linear_output.hpp.
enum class SumsKind { kBytes, kToFloat, kViaFloat };

struct QuantisedWeights {
  PackedBlocks<Cell> blocks;  // one cell a block; the bias is the initial value of a sum
  std::vector<float> scales;  // [parts, groups * block] a step of a sum in steps of the output
  uint8_t x_zero_point = 0;
  Requantise requantise{};    // of sums that become bytes at once
};

enum QuantisedInput : size_t { kScales = 4, kSumBias = 5, kSumResidual = 6 };
constexpr std::array<ort::ElementType, 6> kQuantisedTypes = {ort::kUint8, ort::kInt8,  ort::kInt32,
                                                             ort::kInt32, ort::kFloat, ort::kInt32};
constexpr std::array<ort::ElementType, 6> kViaFloatTypes = {ort::kUint8, ort::kInt8,  ort::kInt32,
                                                            ort::kInt32, ort::kFloat, ort::kFloat};
constexpr std::array<ort::ElementType, 7> kToFloatTypes = {
    ort::kUint8, ort::kInt8, ort::kInt32, ort::kInt32, ort::kFloat, ort::kFloat, ort::kFloat};
constexpr std::array<ort::ElementType, 7> kAddedTypes = {
    ort::kUint8, ort::kInt8, ort::kInt32, ort::kInt32, ort::kFloat, ort::kInt32, ort::kUint8};

struct QuantisedSize {
  int64_t outputs;   // of one part
  int64_t channels;  // input channels of one output, each with `taps` weights
  int64_t taps;
  int64_t parts;  // convolution groups
};

// An attribute in 0 to 255.
uint8_t read_byte(const NodeInfo& node, const char* name);

// How SparseQConvAdd adds its residual.
ByteAddition read_addition(const NodeInfo& node);

// The weights, and the bias and rounding of sums that become bytes at once. Throws Refusal if
// anything does not fit, or a sum could overflow 32 bits.
QuantisedWeights read_quantised(const NodeInfo& node, QuantisedFormat format,
                                const QuantisedSize& size, SumsKind kind = SumsKind::kBytes);

}  // namespace mfac
