// SparseLinear: Y[..., N] = act(X[..., K] W^T + bias + residual).
#pragma once

#include "activation.hpp"
#include "ort.hpp"
#include "packed_weights.hpp"

namespace mfac {

class Linear {
 public:
  static constexpr const char* kName = "SparseLinear";
  static constexpr auto kTypes = kFloatTypes;
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static constexpr size_t kFirstOptional = kBias;
  static constexpr bool kInResidual = false;
  explicit Linear(const NodeInfo& node);
  void run(const Call& call) const;

 private:
  struct Rows;
  struct RowTile;
  void run_rows(const Call& call, const Rows& rows) const;
  void run_tiles(const Call& call, const Rows& rows) const;
  void run_dense(const Rows& rows) const;
  void run_tile(const Rows& rows, const float* columns, const RowTile& tile, int64_t group_begin,
                int64_t group_end) const;

  PackedWeights weights_;
  RangedWeights tiled_[2];  // for strips of one vector, and for the longest strips
  int vectors_[2];
  Activation activation_;
};

}  // namespace mfac
