// The plan of a convolution for one size of input, computed once.
#pragma once

#include <vector>

#include "conv_geometry.hpp"
#include "conv_shares.hpp"
#include "packed_weights.hpp"
#include "simd.hpp"

namespace mfac {

struct Tile {
  int64_t first;   // position in the run
  int64_t length;  // positions
  int64_t back;    // by which its last vector overlaps the one before
  int64_t skip;    // how many of these the previous tile has written
  StripFunction run;
  bool direct;     // written directly to the output; else through a buffer
  bool whole;      // every position is a pixel, except those between rows, which are skipped
  bool ends_rows;  // the zeros between the rows are written, too
};

struct ConvPlan {
  Images input, output;
  Runs runs;
  std::vector<Tile> tiles;
  int64_t most_chunks = kMostTasks;  // of the outputs, that tasks compute separately
  int64_t range_channels = 0;         // input channels processed at a time
  std::vector<RangedWeights> ranged;  // [parts], indices in bytes from the range's first channel
  std::vector<int32_t> keep;          // [at least length] which positions of the run are inside an
                                      // image; empty if the tiles are whole
};

ConvPlan make_plan(const PackedWeights& weights, const Window& window, const Images& input,
                   const Images& output);

}  // namespace mfac
