// What a quantised convolution's kernels need to know about one size of input, worked out once.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "packed_weights.hpp"
#include "quads.hpp"

namespace mfac {

struct QuantisedTile {
  int64_t first;   // position in the run
  int64_t length;  // positions
  QuadStripFunction run;
  bool direct;  // the output is written where it belongs; else by way of a buffer
};

struct QuantisedPlan {
  Images input;  // in cells, with a fourth of the channels
  Images output;
  Runs runs;
  std::vector<QuantisedTile> tiles;
  int64_t range_channels = 0;              // of cells, that are worked on at a time
  std::vector<RangedBlocks<Cell>> ranged;  // [parts], indices in bytes from the range's channel 0
};

QuantisedPlan make_plan(const PackedBlocks<Cell>& weights, const Window& window,
                        const Images& input, const Images& output);

}  // namespace mfac
