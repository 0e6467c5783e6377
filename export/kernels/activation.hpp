// The activation of the sums: a clip inside the kernels, GELU where sums become rows, or in a
// separate pass over data in cache.
#pragma once

#include <cstdint>
#include <string>

#include "ort.hpp"
#include "simd.hpp"

namespace mfac {

struct Activation {
  float low, high;  // infinite without a clip
  void (*gelu)(float* values, int64_t count) = nullptr;
  RowsFunction to_rows = simd_kernels().to_rows;  // with the GELU
  void apply_gelu(float* values, int64_t count) const {
    if (gelu != nullptr) gelu(values, count);
  }
};

// From the attributes activation, min and max, whose names begin with a prefix.
Activation read_activation(const NodeInfo& node, const std::string& prefix = "");

}  // namespace mfac
