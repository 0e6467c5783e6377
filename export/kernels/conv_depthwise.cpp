#include "conv_depthwise.hpp"

#include <algorithm>
#include <cstring>

#include "conv_shares.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kStagedTogether = 16 << 10;
// What the last vector of a channel reads beyond it, at most: 63 positions of a stride of 2, and two
// quads.
constexpr int64_t kBeyondStaged = 192;

DepthwiseFunction<float> chosen(const float*, const Window& w) {
  return simd_kernels().depthwise.floats[w.kernel[0] == 3 ? 0 : 1][w.strides[0] - 1];
}
DepthwiseFunction<uint8_t> chosen(const uint8_t*, const Window& w) {
  return simd_kernels().depthwise.bytes[w.kernel[0] == 3 ? 0 : 1][w.strides[0] - 1];
}

int64_t cells_of_edges(int64_t kernel, int64_t to_width) {
  return (kernel + 1) * (to_width + kDepthwiseReach);
}

// Not in the buffer of inputs, where the convolution before may have its own.
void give_room(Depthwise<float>& d, int64_t) {
  const int64_t edges = cells_of_edges(d.kernel, d.to_width);
  const int64_t row = d.width + 2 * kDepthwiseReach;
  float* const room = scratch().sums.floats(static_cast<size_t>(edges + row));
  d.edges = reinterpret_cast<int32_t*>(room);
  std::fill_n(room + edges, row, 0.0f);
  d.zeros = room + edges;
}

// Rows of the same phase follow each other, so that strides of 2 read every other row.
void give_bytes(Depthwise<uint8_t>& d, int64_t stride) {
  StagedBytes& b = d.bytes;
  const int64_t rows = (d.top + d.height + d.bottom + stride - 1) / stride;
  b.row = (d.left + d.width + d.right + stride - 1) / stride * stride;
  b.phase = rows * b.row;
  b.channel = stride * b.phase;
  const int64_t sums = (d.to_height - 1) * (b.row / stride) + d.to_width;
  b.run = (sums + kDepthwiseBytes - 1) / kDepthwiseBytes * kDepthwiseBytes;
  // So many that the first one's bytes have left the store buffer before they are read.
  b.together = std::max<int64_t>(kStagedTogether / b.channel, 1);
  const int64_t staged = b.together * b.channel + kBeyondStaged;
  b.staged = scratch().inputs.bytes(static_cast<size_t>(staged));
  b.out = scratch().outputs.bytes(static_cast<size_t>(b.together * b.run));
  std::fill_n(b.staged, staged, static_cast<uint8_t>(d.around));
}

void give_room(Depthwise<uint8_t>& d, int64_t stride) {
  if (simd_kernels().depthwise.stages_bytes) return give_bytes(d, stride);
  d.edges = scratch().sums.cells(static_cast<size_t>(cells_of_edges(d.kernel, d.to_width)));
  const int64_t padded = (d.top + d.height + d.bottom) * (d.left + d.width + d.right);
  d.staged = scratch().inputs.floats(static_cast<size_t>(padded + kDepthwiseReach));
  std::fill_n(d.staged + padded, kDepthwiseReach, 0.0f);
}

// One task's channels [begin, end) of all images.
template <class Pixel>
class Channels {
 public:
  Channels(Depthwise<Pixel> all, DepthwiseFunction<Pixel> run, int64_t images_channels,
        int64_t channels, const Pixel* x, Pixel* y)
      : all_(all), run_(run), total_(images_channels), channels_(channels), x_(x), y_(y) {}

  void compute(int64_t begin, int64_t end) {
    const int64_t pixels = all_.height * all_.width;
    all_.end = y_ + end * all_.to_height * all_.to_width;
    // What is read around a channel of floats must belong to the tensor.
    const int64_t margin = sizeof(Pixel) > 1 ? (kDepthwiseReach + pixels - 1) / pixels : 0;
    const int64_t first = std::clamp(margin, begin, end);
    const int64_t last = std::clamp(total_ - margin, first, end);
    for (int64_t c = begin; c < first; ++c) compute_copy(c);
    for (int64_t c = first; c < last;) {
      const int64_t next = std::min(c - c % channels_ + channels_, last);
      compute_channels(c, next - c, x_ + c * pixels);
      c = next;
    }
    for (int64_t c = last; c < end; ++c) compute_copy(c);
  }

 private:
  void compute_channels(int64_t first, int64_t count, const Pixel* from) {
    Depthwise<Pixel> d = all_;
    const int64_t channel = first % channels_;
    const int64_t taps = d.kernel * d.kernel;
    d.from = from;
    d.to = y_ + first * d.to_height * d.to_width;
    d.channels = count;
    d.weights += channel * taps;
    if (d.bias) d.bias += channel * d.step;
    if (d.cells) d.cells += channel * d.kernel * quads_of(d.kernel);
    if (d.begin) d.begin += channel * d.step;
    if (d.scales) d.scales += channel * d.step;
    run_(d);
  }

  void compute_copy(int64_t channel) {
    const int64_t pixels = all_.height * all_.width;
    const size_t size = static_cast<size_t>(pixels + 2 * kDepthwiseReach) * sizeof(Pixel);
    Pixel* const copy = reinterpret_cast<Pixel*>(scratch().columns.bytes(size));
    std::fill_n(copy, kDepthwiseReach, Pixel{});
    std::copy_n(x_ + channel * pixels, pixels, copy + kDepthwiseReach);
    std::fill_n(copy + kDepthwiseReach + pixels, kDepthwiseReach, Pixel{});
    compute_channels(channel, 1, copy + kDepthwiseReach);
  }

  Depthwise<Pixel> all_;
  DepthwiseFunction<Pixel> run_;
  int64_t total_, channels_;
  const Pixel* x_;
  Pixel* y_;
};

template <class Pixel>
Depthwise<Pixel> with_sizes(Depthwise<Pixel> d, const Window& window, const Images& input,
                            const Images& output) {
  d.kernel = window.kernel[0];
  d.height = input.height;
  d.width = input.width;
  d.to_height = output.height;
  d.to_width = output.width;
  d.top = window.pads[0];
  d.left = window.pads[1];
  d.bottom = window.pads[2];
  d.right = window.pads[3];
  return d;
}

}  // namespace

bool is_depthwise(int64_t channels, int64_t outputs, int64_t parts, const Window& w) {
  bool fits = channels == parts && outputs == parts && !w.line;
  fits = fits && (w.kernel[0] == 3 || w.kernel[0] == 5) && w.kernel[1] == w.kernel[0];
  fits = fits && w.strides[0] <= kDepthwiseStrides && w.strides[1] == w.strides[0];
  for (int64_t dilation : w.dilations) fits = fits && dilation == 1;
  for (int64_t pad : w.pads) fits = fits && pad < w.kernel[0];
  return fits;
}

void run_depthwise_channels(const Depthwise<float>& all, const Window& window, const Images& input,
                            const Images& output, int64_t first, int64_t count, const float* from,
                            float* y) {
  Depthwise<float> mine = with_sizes(all, window, input, output);
  give_room(mine, window.strides[0]);
  const int64_t end = (first + count) * output.channel_stride();
  mine.end = y + end;
  mine.to = y + first * output.channel_stride();
  mine.from = from;
  mine.channels = count;
  mine.weights += first * window.taps();
  mine.bias += first * mine.step;
  chosen(from, window)(mine);
}

template <class Pixel>
void run_depthwise(const Call& call, const Depthwise<Pixel>& given, const Window& window,
                   const Images& input, const Images& output, int64_t images, const Pixel* x,
                   Pixel* y) {
  const Depthwise<Pixel> all = with_sizes(given, window, input, output);
  const auto run = chosen(x, window);
  const int64_t channels = images * input.channels;
  const int64_t work = channels * output.channel_stride() * window.taps();
  const int64_t tasks = std::min(channels, std::clamp<int64_t>(work / kTaskWork, 1, 16));
  auto task = [&](size_t index) {
    const int64_t i = static_cast<int64_t>(index);
    Depthwise<Pixel> mine = all;
    give_room(mine, window.strides[0]);
    Channels<Pixel>(mine, run, channels, input.channels, x, y)
        .compute(channels * i / tasks, channels * (i + 1) / tasks);
  };
  if (channels > 0) call.parallel(static_cast<size_t>(tasks), task);
}

template void run_depthwise(const Call&, const Depthwise<float>&, const Window&, const Images&,
                            const Images&, int64_t, const float*, float*);
template void run_depthwise(const Call&, const Depthwise<uint8_t>&, const Window&, const Images&,
                            const Images&, int64_t, const uint8_t*, uint8_t*);

}  // namespace mfac
