// The plan of a quantised convolution for one size of input, computed once.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "packed_weights.hpp"
#include "quads.hpp"

namespace mfac {

struct QuadTile {
  int64_t first;   // position in the run
  int64_t length;  // positions
  QuadStripFunction run;
  bool direct;  // written directly to the output; else through a buffer
};

struct QuadPlan {
  Images input;  // in cells, with a quarter of the channels
  Images output;
  Runs runs;
  std::vector<QuadTile> tiles;
  int64_t range_channels = 0;              // channels of cells processed at a time
  std::vector<RangedBlocks<Cell>> ranged;  // [parts], indices in bytes from the range's channel 0
};

QuadPlan make_quad_plan(const PackedBlocks<Cell>& weights, const Window& window,
                        const Images& input, const Images& output);

}  // namespace mfac
