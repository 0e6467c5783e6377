#include "conv_geometry.hpp"

#include <algorithm>
#include <limits>

#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kLargestAttribute = 1 << 15;

// Numbers for each of two axes; pads have both axes twice. For one axis there are half as many, and
// `row` is used for the other axis.
template <size_t count>
void copy_integers(const NodeInfo& node, const char* name, int64_t least, bool line, int64_t row,
                   int64_t (&to)[count]) {
  const std::vector<int64_t> read = node.integers(name);
  const size_t size = line ? count / 2 : count;
  require(read.size() == size, name, " must have ", size, " numbers");
  for (size_t i = 0; i < size; ++i) {
    require(read[i] >= least && read[i] <= kLargestAttribute, name, " must lie in [", least,
            ", 32768]. Got ", read[i]);
    if (line) to[2 * i] = row;
    to[line ? 2 * i + 1 : i] = read[i];
  }
}

// Check that the padded input is at least as large as the kernel.
int64_t output_size(int64_t input, const Window& w, int axis) {
  const int64_t padded = input + w.pads[axis] + w.pads[axis + 2];
  const int64_t reach = (w.kernel[axis] - 1) * w.dilations[axis] + 1;
  require(padded >= reach, "the padded input (", padded,
          ") must be at least as large as the dilated kernel (", reach, ")");
  return (padded - reach) / w.strides[axis] + 1;
}

bool reads_planes_in_place(const Images& input, const Images& output, const Window& w) {
  bool fits = input.planes;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t first = 1 - w.pads[axis];
    const int64_t last = first + (w.kernel[axis] - 1) * w.dilations[axis];
    fits = fits && w.strides[axis] == 1 && first >= 0 && last <= 2;
  }
  return fits && input.height == output.height && input.width == output.width;
}

// The remainders of the taps modulo the stride.
std::vector<int64_t> phases(const Window& w, int axis) {
  std::vector<int64_t> all;
  for (int64_t tap = 0; tap < w.kernel[axis]; ++tap) {
    const int64_t phase = tap * w.dilations[axis] % w.strides[axis];
    if (std::find(all.begin(), all.end(), phase) == all.end()) all.push_back(phase);
  }
  return all;
}

// Element i of a phase is the input's element i * stride - pad + phase.
std::vector<PhaseSpan> spans(const std::vector<int64_t>& phases, const Window& w, int axis,
                             int64_t input, int64_t length) {
  std::vector<PhaseSpan> all;
  for (const int64_t phase : phases) {
    const int64_t shift = w.pads[axis] - phase;
    const int64_t step = w.strides[axis];
    const int64_t before = std::clamp<int64_t>((shift + step - 1) / step, 0, length);
    const int64_t first = before * step - shift;
    const bool inside = first >= 0 && first < input;
    const int64_t count = inside ? std::min((input - first - 1) / step + 1, length - before) : 0;
    all.push_back(count > 0 ? PhaseSpan{before, count, length - before - count, first}
                            : PhaseSpan{0, 0, length, 0});
  }
  return all;
}

// The distance of rows for which a weight costs the fewest loads. Between rows of whole lines there
// are positions that are computed for nothing; with other distances the vectors of some rows of the
// window cross lines, which costs a second load.
int64_t aligned_row(const Images& output, const Window& w) {
  int64_t best = output.width, least = std::numeric_limits<int64_t>::max();
  for (const int64_t multiple : {int64_t{1}, kLineFloats / 2, kLineFloats}) {
    const int64_t row = (output.width + multiple - 1) / multiple * multiple;
    int64_t crossing = 0;
    for (int64_t y = 0; y < w.kernel[0]; ++y)
      crossing += y * w.dilations[0] / w.strides[0] * row % kLineFloats != 0;
    const int64_t vectors = whole_lines((output.height - 1) * row + output.width) / kLineFloats;
    const int64_t loads = vectors * (w.kernel[0] + crossing);
    if (loads < least) best = row, least = loads;
  }
  return best;
}

}  // namespace

Shape Images::shape(int64_t batch) const {
  if (!planes && line) return {{batch, channels, width}, 3};
  if (!planes) return {{batch, channels, height, width}, 4};
  const int64_t all = batch * channels + spare();
  if (aligned()) return {{all, height + 2, row_stride() / kBetween, kBetween}, 4};
  return {{all, height + 2, row_stride()}, 3};
}

Images read_images(const Shape& shape, int64_t channels, const Window& window, bool planes,
                   int64_t* batch) {
  const char* name = planes ? "X must be [N * C + spare, H + 2, W + 1] or, with W of 8, 16 or 32, "
                              "[N * C + spare, H + 2, W / 8 + 1, 8]"
                     : window.line ? "X must be [N, C, W]"
                                   : "X must be [N, C, H, W]";
  const bool of_three = planes ? shape.rank == 3 : window.line;
  require(shape.rank == (of_three ? 3 : 4), name, ". Got ", shape);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  for (size_t i = 0; i < shape.rank; ++i)
    require(shape.dims[i] >= 0 && shape.dims[i] <= most, "X is too large: ", shape);
  Images images;
  images.planes = planes;
  images.line = window.line;
  images.channels = channels;
  images.height = planes ? shape.dims[1] - 2 : window.line ? 1 : shape.dims[2];
  images.width = !planes           ? shape.dims[shape.rank - 1]
                 : shape.rank == 4 ? (shape.dims[2] - 1) * Images::kBetween
                                   : shape.dims[2] - 1;
  require(images.height >= 1 && images.width >= 1, "X must have at least one pixel. Got ", shape);
  require(images.height == 1 || !window.line, "X must have one row. Got ", shape);
  *batch = planes ? (shape.dims[0] - images.spare()) / channels : shape.dims[0];
  require(*batch >= 0 && images.shape(*batch) == shape, name, " with C = ", channels, ". Got ",
          shape);
  return images;
}

Window read_window(const NodeInfo& node) {
  Window w{};
  w.line = node.integers("kernel_shape").size() == 1;
  copy_integers(node, "kernel_shape", 1, w.line, 1, w.kernel);
  copy_integers(node, "strides", 1, w.line, 1, w.strides);
  copy_integers(node, "dilations", 1, w.line, 1, w.dilations);
  copy_integers(node, "pads", 0, w.line, 0, w.pads);
  return w;
}

Window read_depthwise_window(const NodeInfo& node, int64_t height, int64_t width) {
  Window w{false, {height, width}, {}, {1, 1}, {}};
  copy_integers(node, "depthwise_strides", 1, false, 1, w.strides);
  copy_integers(node, "depthwise_pads", 0, false, 0, w.pads);
  return w;
}

Window read_pool_window(const NodeInfo& node) {
  Window w{false, {}, {}, {1, 1}, {}};
  copy_integers(node, "pool_kernel_shape", 1, false, 1, w.kernel);
  copy_integers(node, "pool_strides", 1, false, 1, w.strides);
  copy_integers(node, "pool_pads", 0, false, 0, w.pads);
  for (int side = 0; side < 4; ++side)
    require(w.pads[side] < w.kernel[side % 2], "pool_pads must be smaller than pool_kernel_shape");
  return w;
}

int64_t divided(const NodeInfo& node, const char* name, int64_t parts) {
  const int64_t value = node.integer(name);
  require(parts >= 1 && value >= 1 && value % parts == 0, name,
          " must be a positive multiple of group");
  return value / parts;
}

int64_t inputs_of_output(int64_t channels, const Window& window) {
  int64_t inputs = 0;
  require(!__builtin_mul_overflow(channels, window.taps(), &inputs),
          "in_channels times the kernel's size is too large");
  return inputs;
}

Images output_images(const Images& input, const Window& window, int64_t channels, bool planes) {
  Images output;
  output.planes = planes;
  output.line = window.line;
  output.channels = channels;
  output.height = output_size(input.height, window, 0);
  output.width = output_size(input.width, window, 1);
  return output;
}

int64_t Runs::tap_offset(const Window& w, int64_t y, int64_t x) const {
  const int64_t row = y * w.dilations[0];
  const int64_t column = x * w.dilations[1];
  if (in_place) return row * row_stride + column;
  const auto place = [](const std::vector<int64_t>& phases, int64_t phase) {
    return std::find(phases.begin(), phases.end(), phase) - phases.begin();
  };
  const int64_t phase =
      place(phase_rows, row % w.strides[0]) * static_cast<int64_t>(phase_columns.size()) +
      (by_column ? x : place(phase_columns, column % w.strides[1]));
  return phase * phase_stride + row / w.strides[0] * row_stride +
         (by_column ? 0 : column / w.strides[1]);
}

Runs plan_runs(const Images& input, const Images& output, const Window& w, Staging staging) {
  Runs runs;
  runs.by_column = staging != Staging::kShared;
  const bool pixels = w.pointwise() && !input.planes;
  runs.unshifted = pixels && input.channel_stride() % simd_kernels().wide.lanes == 0;
  runs.by_tile = staging == Staging::kByTile && !runs.unshifted;
  // If vectors are not aligned, a row must hold one: the last one ends at the row's end.
  const bool one_row =
      pixels && !output.planes && input.height == 1 && input.width >= simd_kernels().narrow.lanes;
  runs.bounded = runs.unshifted || one_row;
  runs.in_place =
      runs.unshifted || (!runs.by_tile && (one_row || reads_planes_in_place(input, output, w)));
  if (runs.in_place) {
    runs.row_stride = input.row_stride();
    runs.channel_stride = input.channel_stride();
    runs.rows = input.height;
  } else {
    const int64_t beyond = (w.kernel[1] - 1) * w.dilations[1];
    int64_t width = output.width + beyond / w.strides[1];
    if (w.strides[1] == 1) {
      // Zeros at a row's end that the next row's first zeros can replace.
      const int64_t after = std::max<int64_t>(width - w.pads[1] - input.width, 0);
      width -= std::min(after, w.pads[1]);
    }
    runs.row_stride = runs.by_tile     ? aligned_row(output, w)
                      : runs.by_column ? output.width
                                       : std::max(width, output.row_stride());
    runs.rows = output.height + (w.kernel[0] - 1) * w.dilations[0] / w.strides[0];
    require(runs.row_stride < (int64_t{1} << 31) && runs.rows < (int64_t{1} << 31),
            "the padded input is too large");
    runs.phase_stride = runs.rows * runs.row_stride;
    runs.phase_rows = phases(w, 0);
    runs.phase_columns = phases(w, 1);
    if (runs.by_column) {
      runs.phase_columns.resize(static_cast<size_t>(w.kernel[1]));
      for (int64_t x = 0; x < w.kernel[1]; ++x) runs.phase_columns[x] = x * w.dilations[1];
    }
    const size_t count = runs.phase_rows.size() * runs.phase_columns.size();
    require(!__builtin_mul_overflow(runs.phase_stride, count, &runs.channel_stride),
            "the padded input is too large");
    runs.row_spans = spans(runs.phase_rows, w, 0, input.height, runs.rows);
    runs.column_spans = spans(runs.phase_columns, w, 1, input.width, runs.row_stride);
    runs.input_row = input.row_stride();
    runs.down = w.strides[0] * runs.input_row;
    runs.step = w.strides[1];
  }
  runs.length = (output.height - 1) * runs.row_stride + output.width;
  // Positions are then the pixels of the output: after the last one begins another channel.
  if (runs.by_tile && !output.planes && runs.row_stride == output.row_stride())
    runs.bounded = runs.length >= kLineFloats;
  if (runs.by_tile) {  // a tile is copied, not an image
    runs.phase_stride = runs.channel_stride = 0;
    return runs;
  }
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(runs.channel_stride, 4 * input.channels, &bytes) &&
              bytes < std::numeric_limits<int32_t>::max() - 4 * runs.length - 4096,
          "one image's padded input must be smaller than 2 GiB");
  return runs;
}

}  // namespace mfac
