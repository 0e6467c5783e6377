// The ranges of input channels that a convolution processes at a time, and the offsets of its taps.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_geometry.hpp"
#include "packed_weights.hpp"

namespace mfac {

// Number of channels whose activations under one tile fill the L1 cache, but so many that a range
// has `least` stored blocks of each group, which amortise loading and storing each sum.
template <class Value>
int64_t channels_in_range(const PackedBlocks<Value>& weights, const Window& window,
                          const Runs& runs, int64_t tile_length, int64_t least);

// The weights of each part, their indices in bytes from the range's first channel.
template <class Value>
std::vector<RangedBlocks<Value>> taps_by_ranges(const PackedBlocks<Value>& weights,
                                                const Window& window, const Runs& runs,
                                                int64_t range_channels);

}  // namespace mfac
