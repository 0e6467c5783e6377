// SparseQLinear with weights in blocks of four outputs.
#pragma once

#include "block_steps.hpp"
#include "linear_output.hpp"
#include "ort.hpp"
#include "quantised_weights.hpp"

namespace mfac {

class BlockLinear {
 public:
  BlockLinear(const NodeInfo& node, SumsKind kind);
  void run(const Call& call) const;

 private:
  void run_rows(const Call& call, const LinearRows& rows) const;
  void run_tiles(const Call& call, const LinearRows& rows) const;
  void tile(const LinearRows& rows, const uint8_t* columns, int size, int64_t first,
            int64_t group_begin, int64_t group_end) const;
  ByteStrip strip_of(const Steps& steps, int64_t group_begin, int64_t group_end) const;

  int64_t inputs_;
  QuantisedWeights weights_;
  LinearOutput output_;
  Steps by_row_;        // offsets in a single row
  Steps by_columns_[2];  // offsets in the columns of a tile: of the lowest, and of the highest
};

}  // namespace mfac
