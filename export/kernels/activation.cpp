#include "activation.hpp"

#include <limits>

namespace mfac {

Activation read_activation(const NodeInfo& node, const std::string& prefix) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::string attribute = prefix + "activation";
  const std::string name = node.word(attribute.c_str());
  if (name == "none") return {-infinity, infinity};
  if (name == "relu") return {0.0f, infinity};
  const SimdKernels& simd = simd_kernels();
  if (name == "gelu") return {-infinity, infinity, simd.gelu_erf, simd.to_rows_gelu_erf};
  if (name == "gelu_tanh") return {-infinity, infinity, simd.gelu_tanh, simd.to_rows_gelu_tanh};
  require(name == "clip", attribute, " must be none, relu, clip, gelu or gelu_tanh. Got '", name,
          "'");
  const Activation clip{node.real((prefix + "min").c_str()), node.real((prefix + "max").c_str())};
  require(clip.low <= clip.high, prefix, "min must not be above max");
  return clip;
}

}  // namespace mfac
