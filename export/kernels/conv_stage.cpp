#include "conv_stage.hpp"

#include <algorithm>

namespace mfac {
namespace {

// Fill the phases of some channels, `stride` floats apart.
void fill_phases(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                 const std::vector<PhaseSpan>& row_spans, float* staged) {
  const auto copy_rows = simd_kernels().copy_rows;
  each_phase(runs, row_spans, [&](const PhaseCopy& copy) {
    copy_rows({pixels + copy.from, copy.down, staged + copy.above * runs.row_stride,
               runs.row_stride, runs.row_stride, copy.rows, copy.step, copy.before, copy.count,
               copy.above, copy.below, channels, stride, runs.channel_stride});
    staged += runs.phase_stride;
  });
}

// The part of a phase's rows from `first` on.
PhaseSpan rows_from(const PhaseSpan& all, int64_t first, int64_t rows, int64_t step) {
  const int64_t begin = std::max(all.before, first);
  const int64_t end = std::min(all.before + all.count, first + rows);
  if (begin >= end) return {0, 0, rows, 0};
  return {begin - first, end - begin, first + rows - end, all.first + (begin - all.before) * step};
}

// The last vector of a tile that ends with its run contains pixels of the one before, too.
void stage_pixels(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                  const Tile& tile, float* staged) {
  const auto copy_rows = simd_kernels().copy_rows;
  const int64_t count = std::min(tile.length, runs.length - tile.first);
  const int64_t lanes = simd_kernels().wide.lanes;
  const int64_t before = tile.back > 0 ? tile.length + tile.back - lanes : count;
  // Each channel is a row.
  RowCopy copy{};
  copy.from = pixels, copy.from_stride = stride;
  copy.to = staged, copy.to_stride = runs.channel_stride;
  copy.width = whole_lines(before), copy.count = before;
  copy.rows = channels;
  copy.step = copy.channels = 1;
  copy_rows(copy);
  if (before == count) return;
  copy.from += count - lanes;
  copy.to += before;
  copy.width = copy.count = lanes;
  copy_rows(copy);
}

}  // namespace

bool has_whole_vectors(const Runs& runs) {
  if (runs.rows != 1 || runs.step != 1) return false;
  if (runs.row_spans.size() != 1 || runs.column_spans.size() != 1) return false;
  return runs.row_spans[0].count == 1 && runs.column_spans[0].count == runs.row_stride;
}

void stage_channels(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                    float* staged) {
  // So few at a time that all phases find them in the first cache.
  constexpr int64_t kFloats = 4096;
  const int64_t at_once = std::max<int64_t>(kFloats / stride, 1);
  for (int64_t c = 0; c < channels; c += at_once)
    fill_phases(pixels + c * stride, stride, std::min(at_once, channels - c), runs,
                runs.row_spans, staged + c * runs.channel_stride);
}

TileStart tile_start(const Runs& runs, const Tile& tile) {
  if (has_whole_vectors(runs)) return {0, 0, 0};
  const int64_t column = tile.first % runs.row_stride;
  return {tile.first / runs.row_stride, whole_lines(column) - column, column};
}

void fit_to_tile(const Images& output, int64_t first, int64_t length, Runs& runs) {
  int64_t floats = whole_lines(length);
  if (!has_whole_vectors(runs)) {
    const int64_t end = std::min(first + length, runs.length);
    const int64_t rows = (end - 1) / runs.row_stride - first / runs.row_stride + 1;
    // What the taps reach below the output's own rows.
    runs.tile_rows = std::max(runs.tile_rows, rows + runs.rows - output.height);
    floats = whole_lines(runs.tile_rows * runs.row_stride + kLineFloats - 1);
  }
  runs.phase_stride = std::max(runs.phase_stride, floats);
  const int64_t phases = static_cast<int64_t>(runs.row_spans.size() * runs.column_spans.size());
  runs.channel_stride = phases * runs.phase_stride;
}

int64_t staged_floats(const Runs& runs, int64_t channels) {
  return channels * runs.channel_stride + 2 * kLineFloats;  // a tile's last vector may end there
}

bool staged_finite(const Runs& runs, int64_t channels, const Tile& tile, const float* staged) {
  const auto rows_finite = simd_kernels().rows_finite;
  if (has_whole_vectors(runs))
    return rows_finite(staged, runs.channel_stride, channels, tile.length + tile.back);
  const size_t phases = runs.row_spans.size() * runs.column_spans.size();
  staged += tile_start(runs, tile).lead;
  bool finite = true;
  for (size_t p = 0; p < phases; ++p, staged += runs.phase_stride)
    finite &= rows_finite(staged, runs.channel_stride, channels, runs.tile_rows * runs.row_stride);
  return finite;
}

const float* stage_tile(const float* pixels, int64_t stride, int64_t channels, const Runs& runs,
                        const Tile& tile, float* staged) {
  if (has_whole_vectors(runs)) {
    stage_pixels(pixels + runs.column_spans[0].first + tile.first, stride, channels, runs, tile,
                 staged);
    return staged;
  }
  const TileStart start = tile_start(runs, tile);
  std::vector<PhaseSpan> row_spans;
  for (const PhaseSpan& all : runs.row_spans)
    row_spans.push_back(rows_from(all, start.row, runs.tile_rows, runs.down / runs.input_row));
  fill_phases(pixels, stride, channels, runs, row_spans, staged + start.lead);
  return staged + start.lead + start.column;
}

}  // namespace mfac
