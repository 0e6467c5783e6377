// What a convolution's kernels need to know about one size of input, worked out once.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "packed_weights.hpp"
#include "simd.hpp"

namespace mfac {

struct Tile {
  int64_t first;   // position in the run
  int64_t length;  // positions
  int64_t skip;    // so many of which the tile before has written
  StripFunction run;
  bool direct;     // the output is written where it belongs; else by way of a buffer
  bool whole;      // every position is a pixel, but for those between rows, which are skipped
  bool ends_rows;  // what is between the rows follows
};

struct ConvPlan {
  Images input, output;
  Runs runs;
  std::vector<Tile> tiles;
  int64_t range_channels = 0;         // input channels that are worked on at a time
  std::vector<RangedWeights> ranged;  // [parts], indices in bytes from the range's first channel
  std::vector<int32_t> keep;          // [length and more] where the run is inside an image, unless
                                      // the tiles are whole
};

ConvPlan make_plan(const PackedWeights& weights, const Window& window, const Images& input,
                   const Images& output);

}  // namespace mfac
