#include "conv.hpp"

#include <algorithm>
#include <cstring>

#include "scratch.hpp"

namespace mfac {
namespace {

constexpr int64_t kTaskWork = 100000;  // multiply-adds that are worth a thread
constexpr int64_t kSumsBytes = 16 << 10;

bool is_planes(const NodeInfo& node, const char* name, bool otherwise = false) {
  const std::string layout = node.word(name, otherwise ? "planes" : "nchw");
  require(layout == "nchw" || layout == "planes",
          name, " must be nchw or planes. Got '", layout, "'");
  return layout == "planes";
}

int64_t divided(const NodeInfo& node, const char* name, int64_t parts) {
  const int64_t value = node.integer(name, 0);
  require(parts >= 1 && value >= 1 && value % parts == 0,
          name, " must be a positive multiple of group");
  return value / parts;
}

int64_t inputs_of_output(const NodeInfo& node, int64_t parts, const Window& window) {
  int64_t inputs = 0;
  require(!__builtin_mul_overflow(divided(node, "in_channels", parts), window.taps(), &inputs),
          "in_channels times the kernel's size is too large");
  return inputs;
}

float clipped(float y, const Activation& activation) {
  y = y < activation.low ? activation.low : y;
  return y > activation.high ? activation.high : y;
}

// Zeros above and below one channel of planes.
void clear_borders(const Images& image, float* pixels, bool above, bool below) {
  if (above) std::fill(pixels - image.origin(), pixels, 0.0f);
  float* end = pixels + (image.height - 1) * image.row_stride() + image.width;
  if (below) std::fill(end, end + image.row_stride(), 0.0f);
}

// Where one channel's first pixel is, and how far it is to the row below.
struct Channel {
  const float* pixels;
  int64_t row_stride;
};

// Write a strip's valid pixels where they belong, row by row.
void scatter(const float* sums, const Tile& tile, int64_t floats, const ConvPlan& plan, float* out,
             Channel residual, const Activation& activation) {
  const Images& image = plan.output;
  const int64_t stride = plan.runs.row_stride;
  const int64_t end = std::min(tile.first + floats, plan.runs.length);
  for (int64_t row = tile.first / stride; row * stride < end; ++row) {
    const int64_t first = std::max(tile.first - row * stride, int64_t{0});
    const int64_t last = std::min(end - row * stride, image.width);
    if (first >= last) continue;
    const float* from = sums + row * stride - tile.first;
    const float* add = residual.pixels ? residual.pixels + row * residual.row_stride : nullptr;
    float* to = out + row * image.row_stride();
    for (int64_t x = first; x < last; ++x)
      to[x] = clipped(from[x] + (add ? add[x] : 0.0f), activation);
    activation.apply_gelu(to + first, last - first);
    if (image.planes && last == image.width) to[last] = 0.0f;
  }
}

}  // namespace

struct Conv::Batch {
  std::shared_ptr<const ConvPlan> plan;
  const float* x;
  float* y;
  const float* residual;
  Images residuals;  // its layout
  int64_t count;
};

// One task's part of an image: some tiles and some groups of outputs.
struct Conv::Share {
  int64_t tile_begin, tile_end, chunk, chunks;
};

Conv::Conv(const NodeInfo& node)
    : channels_(node.integer("in_channels", 0)),
      parts_(node.integer("group", 1)),
      window_(read_window(node)),
      input_planes_(is_planes(node, "input_layout")),
      output_planes_(is_planes(node, "output_layout")),
      residual_planes_(is_planes(node, "residual_layout", output_planes_)),
      weights_(read_weights(node, divided(node, "out_channels", parts_),
                            inputs_of_output(node, parts_, window_), parts_)),
      activation_(read_activation(node)) {}

void Conv::run(const Call& call) const {
  const Tensor x = call.input(kX);
  require(static_cast<bool>(x), "X must be there");
  require(weights_.has_bias || !call.input(kBias), "bias must be a constant initializer");
  Batch batch{};
  const Images input = read_images(x.shape, channels_, input_planes_, &batch.count);
  const Images output =
      output_images(input, window_, parts_ * weights_.outputs, output_planes_);
  const Shape shape = output.shape(batch.count);
  const Tensor residual = call.input(kResidual);
  batch.residuals = output;
  batch.residuals.planes = residual_planes_;
  require(!residual || residual.shape == batch.residuals.shape(batch.count), "residual must be ",
          batch.residuals.shape(batch.count), ". Got ", residual.shape);
  element_count(shape);
  batch.plan = plans_.find(weights_, window_, input, output);
  batch.x = x.floats();
  batch.y = call.output(shape);
  batch.residual = residual ? residual.floats() : nullptr;
  if (output.planes)
    std::memset(batch.y + batch.count * output.image_stride(), 0,
                Images::kReadBeyond * sizeof(float));
  if (batch.count == 0) return;
  run_images(call, batch);
  if (!simd_kernels().all_finite(batch.x, batch.count * input.image_stride())) run_dense(batch);
}

void Conv::run_images(const Call& call, const Batch& batch) const {
  const ConvPlan& plan = *batch.plan;
  const Images& input = plan.input;
  const Runs& runs = plan.runs;
  const size_t staged = static_cast<size_t>(input.channels * runs.channel_stride + Images::kReadBeyond +
                                            window_.pads[1]);
  auto stage = [&](int64_t image, float* to) {
    for (int64_t c = 0; c < input.channels; ++c)
      stage_channel(batch.x + input.offset(image, c), input, window_, runs,
                    to + c * runs.channel_stride);
    const size_t end = static_cast<size_t>(input.channels * runs.channel_stride);
    std::memset(to + end, 0, (staged - end) * sizeof(float));
  };
  auto in_place = [&](int64_t image) {
    const int64_t back = window_.pads[0] * runs.row_stride + window_.pads[1];
    return batch.x + input.offset(image, 0) - back;
  };
  const int64_t tiles = static_cast<int64_t>(plan.tiles.size());
  const int64_t work = static_cast<int64_t>(weights_.values.size()) * runs.length;
  const int64_t wanted = std::clamp<int64_t>(work / kTaskWork, 1, 16);

  if (batch.count >= 8) {  // a task works on a whole image
    auto task = [&](size_t index) {
      const int64_t image = static_cast<int64_t>(index);
      const float* pixels = nullptr;
      if (runs.in_place) {
        pixels = in_place(image);
      } else {
        float* own = scratch().columns.floats(staged);
        stage(image, own);
        pixels = own;
      }
      run_share(batch, pixels, image, {0, tiles, 0, 1});
    };
    call.parallel(static_cast<size_t>(batch.count), task);
    return;
  }
  const int64_t by_tiles = std::min(tiles, wanted);
  const int64_t chunks = std::min((wanted + by_tiles - 1) / by_tiles, weights_.groups);
  for (int64_t image = 0; image < batch.count; ++image) {
    const float* pixels = nullptr;
    if (runs.in_place) {
      pixels = in_place(image);
    } else {
      float* own = scratch().inputs.floats(staged);
      stage(image, own);
      pixels = own;
    }
    auto task = [&](size_t index) {
      const int64_t by_tile = static_cast<int64_t>(index) / chunks;
      run_share(batch, pixels, image,
                {tiles * by_tile / by_tiles, tiles * (by_tile + 1) / by_tiles,
                 static_cast<int64_t>(index) % chunks, chunks});
    };
    call.parallel(static_cast<size_t>(by_tiles * chunks), task);
  }
}

void Conv::run_share(const Batch& batch, const float* pixels, int64_t image,
                     const Share& share) const {
  const ConvPlan& plan = *batch.plan;
  const Images& output = plan.output;
  const int64_t begin = weights_.groups * share.chunk / share.chunks;
  const int64_t end = weights_.groups * (share.chunk + 1) / share.chunks;
  const int64_t tiles = static_cast<int64_t>(plan.tiles.size());
  for (int64_t part = 0; part < parts_; ++part) {
    if (output.planes) {
      const int64_t last = std::min(end * weights_.block, weights_.outputs);
      for (int64_t o = begin * weights_.block; o < last; ++o)
        clear_borders(output, batch.y + output.offset(image, part * weights_.outputs + o),
                      share.tile_begin == 0, share.tile_end == tiles);
    }
    for (int64_t t = share.tile_begin; t < share.tile_end; ++t)
      run_tile(batch, pixels, image, plan.tiles[t], part, begin, end);
  }
}

void Conv::run_tile(const Batch& batch, const float* pixels, int64_t image, const Tile& tile,
                    int64_t part, int64_t group_begin, int64_t group_end) const {
  const ConvPlan& plan = *batch.plan;
  const StripTable& table = simd_kernels().narrow;
  const StripFunction run = table.run[block_class(weights_.block)][tile.vectors];
  const RangedWeights& w = plan.ranged[part];
  const Images& output = plan.output;
  const int64_t floats = int64_t{tile.vectors} * table.lanes;
  const int64_t channels_per_part = channels_ / parts_;
  const bool direct = tile.direct && (!batch.residual || residual_planes_ == output_planes_);
  // A buffer holds some groups at a time; without one all go at once.
  const int64_t step = direct ? group_end - group_begin
                                   : std::max<int64_t>(kSumsBytes / (floats * 4 * weights_.block), 1);
  float* sums =
      direct ? nullptr : scratch().sums.floats(static_cast<size_t>(step * weights_.block * floats));
  for (int64_t group = group_begin; group < group_end; group += step) {
    const int64_t end = std::min(group + step, group_end);
    const int64_t first_output = group * weights_.block;
    const int64_t channel = part * weights_.outputs + first_output;
    const int64_t at = output.offset(image, channel) + tile.first;
    Strip strip{};
    strip.values = w.values.data();
    strip.offsets = w.indices.data();
    strip.out = direct ? batch.y + at : sums;
    strip.stride = direct ? output.channel_stride() : floats;
    strip.group_begin = 0;
    strip.group_end = end - group;
    strip.outputs = std::min(end * weights_.block, weights_.outputs) - first_output;
    strip.bias = weights_.bias.data() + part * weights_.groups * weights_.block + first_output;
    strip.residual = direct && batch.residual ? batch.residual + at : nullptr;
    strip.keep = output.planes ? plan.keep.data() + tile.first : nullptr;
    strip.low = activation_.low;
    strip.high = activation_.high;
    for (int64_t range = 0; range < w.ranges; ++range) {
      const int64_t from = part * channels_per_part + range * plan.range_channels;
      strip.starts = w.starts.data() + range * (weights_.groups + 1) + group;
      strip.base = reinterpret_cast<const char*>(pixels + from * plan.runs.channel_stride +
                                                 tile.first);
      strip.first = range == 0;
      strip.last = direct && range + 1 == w.ranges;
      run(strip);
    }
    for (int64_t o = 0; o < strip.outputs && !direct; ++o) {
      const Images& residuals = batch.residuals;
      const int64_t there = batch.residual ? residuals.offset(image, channel + o) : 0;
      scatter(sums + o * floats, tile, floats, plan, batch.y + output.offset(image, channel + o),
              {batch.residual ? batch.residual + there : nullptr, residuals.row_stride()},
              activation_);
    }
    for (int64_t o = 0; o < strip.outputs && direct && activation_.gelu; ++o)
      activation_.apply_gelu(batch.y + at + o * output.channel_stride(), floats);
  }
}

// Images with a NaN or an infinity: 0 * NaN is NaN, so weights that are not stored count as well.
void Conv::run_dense(const Batch& batch) const {
  const ConvPlan& plan = *batch.plan;
  const Images& in = plan.input;
  const Images& out = plan.output;
  float* w = scratch().columns.floats(static_cast<size_t>(weights_.inputs));
  const int64_t channels = channels_ / parts_;
  for (int64_t image = 0; image < batch.count; ++image) {
    const float* x = batch.x + image * in.image_stride();
    if (simd_kernels().all_finite(x, in.image_stride())) continue;
    for (int64_t o = 0; o < out.channels; ++o) {
      const int64_t part = o / weights_.outputs;
      unpack_output(weights_, part, o % weights_.outputs, w);
      const float bias = weights_.bias[part * weights_.groups * weights_.block + o % weights_.outputs];
      const int64_t channel = out.offset(image, o);
      const int64_t there = batch.residuals.offset(image, o);
      for (int64_t row = 0; row < out.height; ++row) {
        for (int64_t column = 0; column < out.width; ++column) {
          float sum = bias;
          for (int64_t i = 0; i < weights_.inputs; ++i) {
            const int64_t tap = i % window_.taps();
            const int64_t iy = row * window_.strides[0] - window_.pads[0] +
                               tap / window_.kernel[1] * window_.dilations[0];
            const int64_t ix = column * window_.strides[1] - window_.pads[1] +
                               tap % window_.kernel[1] * window_.dilations[1];
            if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
            const int64_t c = part * channels + i / window_.taps();
            sum += w[i] * batch.x[in.offset(image, c) + iy * in.row_stride() + ix];
          }
          const int64_t at = channel + row * out.row_stride() + column;
          if (batch.residual)
            sum += batch.residual[there + row * batch.residuals.row_stride() + column];
          batch.y[at] = clipped(sum, activation_);
        }
        activation_.apply_gelu(batch.y + channel + row * out.row_stride(), out.width);
      }
    }
  }
}

}  // namespace mfac
