// Copies of a convolution's input, as its taps read it.
#pragma once

#include "conv_plan.hpp"

namespace mfac {

// Copy some channels, `stride` floats apart, into their phases, with zeros for the padding.
void stage_channels(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                    float* staged);

// By tile: only what one tile reads of a range of channels is copied, just before it is read, and
// so into the first cache, however large the image. Rows that two tiles share are copied twice.

// Make the strides of the copies large enough for a tile, which begins at position `first`.
void fit_to_tile(const Images& output, int64_t first, int64_t length, Runs& runs);

// Whether an output reads only the pixel at its own position: then rows do not matter, and even the
// last vector of a run is copied to a place of its own.
bool has_whole_vectors(const Runs& runs);

// Where the copy of a tile begins.
struct TileStart {
  int64_t row;     // of the phases
  int64_t lead;    // floats before the first row, so that the tile's own first position is aligned
  int64_t column;  // of the row, where the tile's first position is
};
TileStart tile_start(const Runs& runs, const Tile& tile);

// Floats that the copies of some channels need.
int64_t staged_floats(const Runs& runs, int64_t channels);

// Copy some channels, `stride` floats apart. Returns the tile's first position in the first one.
const float* stage_tile(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                        const Tile& tile, float* staged);

// Whether none of the pixels copied is NaN or infinite.
bool staged_finite(const Runs& runs, int64_t channels, const Tile& tile, const float* staged);

}  // namespace mfac
