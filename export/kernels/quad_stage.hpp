// Packs four channels of bytes into cells, as a convolution's strips read them.
#pragma once

#include <cstdint>

#include "conv_geometry.hpp"
#include "quads.hpp"

namespace mfac {

// Fill the phases of one quad of channels, with `around` for the padding.
// pixels: of the quad's first channel; channels: 1 ... 4 that exist.
void stage_quad(const uint8_t* pixels, const Images& input, int64_t channels, uint8_t around,
                const Runs& runs, Cell* staged);

}  // namespace mfac
