#include "conv_ranges.hpp"

#include <algorithm>
#include <limits>

#include "quads.hpp"
#include "tiling.hpp"

namespace mfac {

template <class Value>
int64_t channels_in_range(const PackedBlocks<Value>& weights, const Window& window,
                          const Runs& runs, int64_t tile_length, int64_t least) {
  int64_t reach = 0;
  for (int64_t y = 0; y < window.kernel[0]; ++y)
    reach = std::max(reach, y * window.dilations[0] / window.strides[0] * runs.row_stride);
  const size_t phases = std::max<size_t>(runs.phase_rows.size() * runs.phase_columns.size(), 1);
  const int64_t values =
      runs.by_tile ? runs.channel_stride
                   : (std::min(tile_length, runs.length) + reach) * static_cast<int64_t>(phases);
  const int64_t range = runs.by_tile ? tiling().tile_range : tiling().conv_range;
  const int64_t fitting = std::max<int64_t>(range / (4 * values), 1);
  const int64_t channels = weights.inputs / window.taps();
  const int64_t stored = static_cast<int64_t>(weights.indices.size());
  const int64_t most = std::max<int64_t>(stored / (least * weights.groups * weights.parts), 1);
  const int64_t wanted = std::min(std::max(fitting, (channels + most - 1) / most), channels);
  if (!runs.by_tile) return wanted;  // the whole image has been checked
  const int64_t addressable = std::numeric_limits<int32_t>::max() / (4 * values);
  return std::min(wanted, std::max<int64_t>(addressable, 1));  // offsets have 32 bits
}

template <class Value>
std::vector<RangedBlocks<Value>> taps_by_ranges(const PackedBlocks<Value>& weights,
                                                const Window& window, const Runs& runs,
                                                int64_t range_channels) {
  std::vector<RangedBlocks<Value>> all;
  for (int64_t part = 0; part < weights.parts; ++part) {
    RangedBlocks<Value> ranged = by_ranges(weights, part, range_channels * window.taps());
    for (int32_t& index : ranged.indices) {
      const int64_t channel = index / window.taps() % range_channels;
      const int64_t tap = index % window.taps();
      const int64_t offset =
          channel * runs.channel_stride +
          runs.tap_offset(window, tap / window.kernel[1], tap % window.kernel[1]);
      index = static_cast<int32_t>(offset * static_cast<int64_t>(sizeof(Value)));
    }
    all.push_back(std::move(ranged));
  }
  return all;
}

template int64_t channels_in_range(const PackedBlocks<float>&, const Window&, const Runs&, int64_t,
                                   int64_t);
template int64_t channels_in_range(const PackedBlocks<Cell>&, const Window&, const Runs&, int64_t,
                                   int64_t);
template std::vector<RangedBlocks<float>> taps_by_ranges(const PackedBlocks<float>&, const Window&,
                                                         const Runs&, int64_t);
template std::vector<RangedBlocks<Cell>> taps_by_ranges(const PackedBlocks<Cell>&, const Window&,
                                                        const Runs&, int64_t);

}  // namespace mfac
