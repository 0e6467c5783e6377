// The plan of a convolution with blocks of outputs for one size of input, computed once.
#pragma once

#include <vector>

#include "block_steps.hpp"
#include "conv_geometry.hpp"

namespace mfac {

struct BlockTile {
  int64_t first;   // position in the run
  int64_t length;  // positions that the strip computes
  int64_t skip;    // how many of these the previous tile has written
  int64_t count;   // how many lie in the run
  ByteStripFunction run;
  bool direct() const { return skip == 0 && count == length; }
};

struct BlockPlan {
  Images input, output;
  Runs runs;           // in bytes
  int64_t column = 0;  // if not 0, an image smaller than a strip is gathered first: [channels, column]
  std::vector<BlockTile> tiles;
  std::vector<Steps> parts;
};

BlockPlan make_block_plan(const PackedBlocks<Cell>& weights, const Window& window, const Images& input,
                    const Images& output);

}  // namespace mfac
