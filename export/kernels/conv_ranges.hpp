// Which input channels a convolution works on at a time, and where its taps lie among them.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_geometry.hpp"
#include "packed_weights.hpp"

namespace mfac {

constexpr int64_t kRangeBytes = 24 << 10;  // of activations in the first cache

// Channels whose part below one tile fills the first cache, but not so few that there is little
// to add up for each sum that is loaded and stored.
template <class Value>
int64_t channels_in_range(const PackedBlocks<Value>& weights, const Window& window,
                          const Runs& runs, int64_t tile_length);

// The weights of each part, their indices in bytes from the range's first channel.
template <class Value>
std::vector<RangedBlocks<Value>> taps_by_ranges(const PackedBlocks<Value>& weights,
                                                const Window& window, const Runs& runs,
                                                int64_t range_channels);

}  // namespace mfac
