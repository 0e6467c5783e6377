// Sizes of tiles, by the processor's first data cache.
//
// Processors with 32 KiB of it (AMD Zen 2 to 4) compute 512 bits in two halves, if at all; those with
// 48 KiB (Intel since Ice Lake, AMD Zen 5) in one, and have a larger second cache for each core. There
// loads are what is short: a weight serves more vectors, and a vector may cross cache lines.
#pragma once

#include <cstdint>

namespace mfac {

struct Tiling {
  int block_vectors;       // of rows, that a weight of a block serves in a linear layer
  int64_t singles_range;   // bytes of activations that a linear layer with single weights reads
  int64_t blocks_range;    // at a time, and one with blocks
  int64_t sums;            // bytes of outputs between two transpositions
  int64_t conv_range;      // bytes of activations that a convolution reads at a time
  int64_t tile_range;      // the same, if they are copied for a tile
  int64_t conv_singles;    // stored weights of an output that one of these ranges has at least
  int64_t conv_blocks;     // the same, of blocks of outputs
  bool wide_shifted;       // convolutions read shifted runs in vectors of the full width
};

// The environment variable MFAC_SPARSE_L1D (KiB), read once, stands for another processor, in tests.
const Tiling& tiling();

}  // namespace mfac
