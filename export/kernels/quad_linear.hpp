// SparseQLinear with weights in quads of inputs.
#pragma once

#include "linear_output.hpp"
#include "ort.hpp"
#include "quantised_weights.hpp"

namespace mfac {

class QuadLinear {
 public:
  QuadLinear(const NodeInfo& node, SumsKind kind);
  void run(const Call& call) const;

 private:
  void run_rows(const Call& call, const LinearRows& rows) const;
  void run_tiles(const Call& call, const LinearRows& rows) const;
  void tile(const LinearRows& rows, const Cell* columns, int size, int64_t first, int64_t output_begin,
            int64_t output_end) const;
  const uint8_t* in_quads(const uint8_t* rows, int64_t count, int64_t begin, int64_t end,
                          uint8_t* padded) const;
  QuadStrip strip_of(int64_t first_output, int64_t outputs) const;

  int64_t inputs_;
  QuantisedWeights weights_;
  LinearOutput output_;
  RangedBlocks<Cell> tiled_[2];   // for strips of one vector, and of more
  std::vector<int32_t> offsets_;  // of single rows
};

}  // namespace mfac
