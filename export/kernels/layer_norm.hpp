// LayerNorm: Y = (X - mean) / sqrt(variance + epsilon) * scale + bias along the last axis.
// LayerNormQuantize: the same, rounded to unsigned bytes, and optionally what these stand for.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ort.hpp"
#include "quads.hpp"

namespace mfac {

constexpr std::array<ort::ElementType, 3> kNormTypes = {ort::kFloat, ort::kFloat, ort::kFloat};

// Scale, bias and epsilon, read and checked.
struct NormParameters {
  explicit NormParameters(const NodeInfo& node);
  std::vector<float> scale, bias;  // as many as a row has values
  bool has_bias;
  float epsilon;
};

class LayerNorm {
 public:
  static constexpr const char* kName = "LayerNorm";
  static constexpr auto kTypes = kNormTypes;
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static constexpr size_t kFirstOptional = 2;
  static constexpr bool kInResidual = false;
  explicit LayerNorm(const NodeInfo& node) : norm_(node) {}
  void run(const Call& call) const;

 private:
  NormParameters norm_;
};

class LayerNormQuantize {
 public:
  static constexpr const char* kName = "LayerNormQuantize";
  static constexpr auto kTypes = kNormTypes;
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static constexpr size_t kFirstOptional = 2;
  static constexpr bool kInResidual = false;
  explicit LayerNormQuantize(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  NormParameters norm_;  // divided by the step, so that no value needs a division of its own
  float step_;
  Requantise rounding_{};
};

}  // namespace mfac
