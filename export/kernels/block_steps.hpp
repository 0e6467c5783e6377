// Weights in blocks of outputs, put together as the steps that a strip takes.
#pragma once

#include <cstdint>
#include <vector>

#include "packed_weights.hpp"
#include "quantised_blocks.hpp"

namespace mfac {

struct Steps {
  std::vector<ByteStep> all;
  std::vector<int32_t> starts;  // [groups + 1]
};

// The steps of one part. A group's last step is padded with weights of 0 for its last input.
// offset(input) returns where an input's bytes are, in bytes from the part's first.
template <class Offset>
Steps in_steps(const PackedBlocks<Cell>& w, int64_t part, const Offset& offset) {
  Steps steps;
  steps.starts.push_back(0);
  const auto* values = reinterpret_cast<const int8_t*>(w.values.data());
  for (int64_t group = part * w.groups; group < (part + 1) * w.groups; ++group) {
    const int64_t end = w.starts[group + 1];
    for (int64_t first = w.starts[group]; first < end; first += kStepInputs) {
      ByteStep step;
      int8_t weights[kBlockOutputs][kStepInputs] = {};
      for (int64_t k = 0; k < kStepInputs; ++k) {
        const int64_t i = first + k < end ? first + k : end - 1;
        step.offsets[k] = static_cast<int32_t>(offset(w.indices[i]));
        for (int64_t o = 0; o < kBlockOutputs && first + k < end; ++o)
          weights[o][k] = values[i * kBlockOutputs + o];
      }
      __builtin_memcpy(step.cells, weights, sizeof weights);
      steps.all.push_back(step);
    }
    steps.starts.push_back(static_cast<int32_t>(steps.all.size()));
  }
  return steps;
}

}  // namespace mfac
