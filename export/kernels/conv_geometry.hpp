// Memory layouts of a convolution's images.
//
// "nchw": [N, C, H, W], or [N, C, W] for a convolution along one axis, whose images have one row.
// "planes": [N * C + spare, H + 2, W + 1], each channel with a border of
// zeros: one row above, one below, and one column at the left that also serves as the right border
// of the row before. A shift by one pixel in any direction is then a shift in memory, and a 3x3
// convolution reads its input in place. The spare planes allow reads beyond the end.
//
// Rows of 8, 16 or 32 pixels have a border of 8 columns between them instead, [N * C + spare, H +
// 2, W / 8 + 1, 8], so that vectors of 8 pixels are whole, and few shifted ones cross a cache line.
#pragma once

#include <cstdint>
#include <vector>

#include "ort.hpp"
#include "simd.hpp"

namespace mfac {

constexpr int64_t kLineFloats = 16;  // in a cache line, and in the widest vector

inline int64_t whole_lines(int64_t floats) {
  return (floats + kLineFloats - 1) / kLineFloats * kLineFloats;
}

struct Images {
  bool planes = false;
  bool line = false;  // one row, without an axis for it where the layout is nchw
  int64_t channels = 0, height = 0, width = 0;

  // Whether vectors of pixels are aligned in rows.
  bool aligned() const { return planes && (width == 8 || width == 16 || width == 32); }
  int64_t between_rows() const { return aligned() ? kBetween : planes ? 1 : 0; }
  int64_t row_stride() const { return width + between_rows(); }
  int64_t channel_stride() const { return (planes ? height + 2 : height) * row_stride(); }
  int64_t image_stride() const { return channels * channel_stride(); }
  // Offset of the first pixel. The 8 pixels of a short row lie in the middle of a cache line.
  int64_t origin() const { return planes ? row_stride() + (width == 8 ? 4 : between_rows()) : 0; }
  // Offset of a channel's first pixel.
  int64_t offset(int64_t image, int64_t channel) const {
    return image * image_stride() + channel * channel_stride() + origin();
  }
  int64_t spare() const {
    return planes ? (kReadBeyond + channel_stride() - 1) / channel_stride() : 0;
  }
  Shape shape(int64_t batch) const;
  // The same pixels as one row.
  void flatten() { width *= height, height = 1; }
  static constexpr int64_t kBetween = kBetweenRows;  // columns between aligned rows
  static constexpr int64_t kReadBeyond = 32;         // floats
  // Which of these floats is nonzero if any pixel is NaN or infinite. Those before it may be read
  // as zeros.
  static constexpr int64_t kNotFinite = 31;
};

struct Window {
  bool line = false;  // along one axis: the first numbers are for a single row
  int64_t kernel[2], strides[2], dilations[2], pads[4];  // pads: top, left, bottom, right
  int64_t taps() const { return kernel[0] * kernel[1]; }
  // Whether every output pixel reads only the input pixel at the same position.
  bool pointwise() const {
    return taps() == 1 && strides[0] == 1 && strides[1] == 1 &&
           pads[0] + pads[1] + pads[2] + pads[3] == 0;
  }
};

Window read_window(const NodeInfo& node);
// The window of a depthwise convolution that follows another one.
Window read_depthwise_window(const NodeInfo& node, int64_t height, int64_t width);
// The window over which a convolution's output is pooled.
Window read_pool_window(const NodeInfo& node);
// Read batch and size from a tensor's shape. Throws Refusal if it does not fit.
Images read_images(const Shape& shape, int64_t channels, const Window& window, bool planes,
                   int64_t* batch);
// An attribute's value divided by the number of convolution groups.
int64_t divided(const NodeInfo& node, const char* name, int64_t parts);
// Number of weights of one output: channels times taps.
int64_t inputs_of_output(int64_t channels, const Window& window);
Images output_images(const Images& input, const Window& window, int64_t channels, bool planes);

// Which rows, or columns, of a phase come from the input: `first`, and then each stride.
struct PhaseSpan {
  int64_t before, count, after;  // padding, pixels, padding
  int64_t first;
};

// How one phase of a channel is filled.
struct PhaseCopy {
  int64_t above, rows, below;  // of the phase: padding, pixels, padding
  int64_t before, count;       // of a row: padding, pixels; the rest is padding
  int64_t from;                // the input's first pixel, counted from the channel's
  int64_t down, step;          // distances between pixels of the input
};

// How the input is read: as runs of `length` positions, row after row, with the next row at
// `row_stride`. Every tap is one shift of the whole run.
//
// Strides split a channel into phases: pixel (y, x) of the padded input goes to phase
// (y % stride, x % stride), so that neighbours of the output are neighbours in memory.
struct Runs {
  bool in_place = false;     // read from the tensor, not from a copy
  bool bounded = false;      // nothing may be read, or written, beyond the last position
  bool unshifted = false;    // a single tap, and whole vectors: no load crosses a cache line
  bool by_column = false;    // each column of the window has phases of its own: nothing to skip
  bool by_tile = false;      // copied for each tile anew (conv_stage.hpp)
  int64_t row_stride = 0;    // floats
  int64_t phase_stride = 0;  // floats from one phase of a channel to the next
  int64_t channel_stride = 0;
  int64_t rows = 0;                                // of a phase
  int64_t tile_rows = 0;                           // of these that a tile reads
  std::vector<int64_t> phase_rows, phase_columns;  // those that any tap reads
  std::vector<PhaseSpan> row_spans, column_spans;  // of these phases
  int64_t input_row = 0, down = 0, step = 0;       // of the input: a row, and strides
  int64_t length = 0;                              // from the first output pixel to the last
  int64_t tap_offset(const Window& window, int64_t y, int64_t x) const;
};
// How the pixels are laid out that the taps read.
enum class Staging {
  kShared,    // in place if possible, else one copy, of which the window's columns are shifts
  kByColumn,  // in place if possible, else a copy for each column of the window
  kByTile,    // copies by column of what one tile reads, in which few vectors cross a cache line
};
Runs plan_runs(const Images& input, const Images& output, const Window& window, Staging staging);

// Visit the copy of each phase, in their order, with the given rows: visit(const PhaseCopy&).
template <class Visit>
void each_phase(const Runs& runs, const std::vector<PhaseSpan>& row_spans, const Visit& visit) {
  for (const PhaseSpan& rows : row_spans)
    for (const PhaseSpan& columns : runs.column_spans)
      visit(PhaseCopy{rows.before, rows.count, rows.after, columns.before, columns.count,
                      rows.first * runs.input_row + columns.first, runs.down, runs.step});
}

// The same with all of their rows.
template <class Visit>
void each_phase(const Runs& runs, const Visit& visit) {
  each_phase(runs, runs.row_spans, visit);
}

}  // namespace mfac
