#include "conv.hpp"

#include <algorithm>
#include <cstring>

#include "conv_depthwise.hpp"
#include "conv_output.hpp"
#include "conv_stage.hpp"
#include "scratch.hpp"

namespace mfac {
namespace {

constexpr int64_t kSumsBytes = 16 << 10;
constexpr int64_t kSumsByTile = 256 << 10;  // more, since the input is copied again for each

bool is_planes(const NodeInfo& node, const char* name) {
  const std::string layout = node.word(name);
  require(layout == "nchw" || layout == "planes", name, " must be nchw or planes. Got '", layout,
          "'");
  return layout == "planes";
}

}  // namespace

Conv::Conv(const NodeInfo& node, bool in_nchw)
    : channels_(node.integer("in_channels")),
      parts_(node.integer("group")),
      window_(read_window(node)),
      input_planes_(!in_nchw && is_planes(node, "input_layout")),
      output_planes_(!in_nchw && is_planes(node, "output_layout")),
      residual_planes_(!in_nchw && is_planes(node, "residual_layout")),
      weights_(read_weights(node, divided(node, "out_channels", parts_),
                            inputs_of_output(divided(node, "in_channels", parts_), window_),
                            parts_)),
      activation_(read_activation(node)),
      depthwise_(depthwise_weights()) {}

void Conv::run(const Call& call) const {
  const Tensor x = call.input(kX);
  require(static_cast<bool>(x), "X must be there");
  require(weights_.has_bias || !call.input(kBias), "bias must be a constant initializer");
  Batch batch;
  Images input = read_images(x.shape, channels_, window_, input_planes_, &batch.count);
  Images output = output_images(input, window_, parts_ * weights_.outputs, output_planes_);
  const Shape shape = output.shape(batch.count);
  const Tensor residual = call.input(kResidual);
  batch.residuals = output;
  batch.residuals.planes = residual_planes_;
  require(!residual || residual.shape == batch.residuals.shape(batch.count), "residual must be ",
          batch.residuals.shape(batch.count), ". Got ", residual.shape);
  element_count(shape);
  if (window_.pointwise() && !input_planes_ && !output_planes_ && !residual_planes_) {
    for (Images* images : {&input, &output, &batch.residuals}) images->flatten();
  }
  batch.x = x.floats();
  batch.y = call.output(shape);
  if (!depthwise_.empty() && !residual) return run_depthwise(call, batch, input, output);
  batch.plan = plans_.find(input.height, input.width,
                           [&] { return make_plan(weights_, window_, input, output); });
  batch.residual = residual ? residual.floats() : nullptr;
  // Images that are computed again need the residual again, which the output may overwrite: so
  // whether there are any is found out first. Planes record it, set by the convolution that wrote
  // them.
  batch.checked = input.planes || batch.in_residual();
  if (input.planes)
    batch.bad_input = batch.x[batch.count * input.image_stride() + Images::kNotFinite] != 0.0f;
  else if (batch.in_residual())
    batch.bad_input = !simd_kernels().all_finite(batch.x, batch.count * input.image_stride());
  if (batch.bad_input && batch.in_residual()) batch.residual = copied(residual);
  if (batch.count > 0) run_images(call, batch);
  bool finite = !batch.bad_output;
  if (batch.bad_input) {
    run_dense(batch);
    finite = simd_kernels().all_finite(batch.y, batch.count * output.image_stride());
  }
  if (output.planes) {
    float* spare = batch.y + batch.count * output.image_stride();
    std::fill(spare, spare + Images::kReadBeyond, 0.0f);
    if (!finite) spare[Images::kNotFinite] = 1.0f;
  }
}

const float* Conv::copied(const Tensor& images) {
  const int64_t count = element_count(images.shape);
  float* copy = scratch().between.floats(static_cast<size_t>(count));
  std::memcpy(copy, images.data, static_cast<size_t>(count) * sizeof(float));
  return copy;
}

std::vector<float> Conv::depthwise_weights() const {
  std::vector<float> all;
  if (input_planes_ || output_planes_ ||
      !is_depthwise(channels_, parts_ * weights_.outputs, parts_, window_))
    return all;
  all.resize(static_cast<size_t>(parts_ * window_.taps()));
  for (int64_t part = 0; part < parts_; ++part)
    unpack_output(weights_, part, 0, all.data() + part * window_.taps());
  return all;
}

void Conv::run_depthwise(const Call& call, const Batch& batch, const Images& input,
                         const Images& output) const {
  Depthwise<float> all{};
  all.weights = depthwise_.data();
  all.bias = weights_.bias.data();
  all.step = weights_.block;
  all.low = activation_.low;
  all.high = activation_.high;
  mfac::run_depthwise(call, all, window_, input, output, batch.count, batch.x, batch.y);
  activation_.apply_gelu(batch.y, batch.count * output.image_stride());
}

void Conv::run_images(const Call& call, const Batch& batch) const {
  const ConvPlan& plan = *batch.plan;
  const Sharing sharing{batch.count, static_cast<int64_t>(plan.tiles.size()), weights_.groups,
                        static_cast<int64_t>(weights_.values.size()) * plan.runs.length,
                        plan.most_chunks, plan.runs.by_tile ? &threads_ : nullptr};
  parallel_for(
      call, sharing,
      [&](int64_t image, Buffer& buffer, const Call* shared) {
        return stage(batch, image, buffer, shared);
      },
      [&](const float* pixels, int64_t image, const Share& share) {
        run_share(batch, pixels, image, share);
      });
}

// An image's pixels as the tiles read them: where they lie, or copied into a buffer, in parallel if
// a call is given.
const float* Conv::stage(const Batch& batch, int64_t image, Buffer& buffer,
                         const Call* call) const {
  const Images& input = batch.plan->input;
  const Runs& runs = batch.plan->runs;
  if (runs.by_tile) return nullptr;
  if (runs.in_place) {
    const int64_t back = window_.pads[0] * runs.row_stride + window_.pads[1];
    return batch.x + input.offset(image, 0) - back;
  }
  const size_t end = static_cast<size_t>(input.channels * runs.channel_stride);
  const size_t all = end + Images::kReadBeyond + static_cast<size_t>(window_.pads[1]);
  float* to = buffer.floats(all);
  in_parts(call, input.channels, 4 * static_cast<int64_t>(end), [&](int64_t first, int64_t last) {
    stage_channels(batch.x + input.offset(image, first), input.channel_stride(), last - first, runs,
                   to + first * runs.channel_stride);
    const int64_t count = (last - first) * runs.channel_stride;
    if (!input.planes && !simd_kernels().all_finite(to + first * runs.channel_stride, count))
      batch.bad_input.store(true, std::memory_order_relaxed);
  });
  std::memset(to + end, 0, (all - end) * sizeof(float));
  return to;
}

// The pixels that a tile reads of some channels, copied.
const float* Conv::stage_range(const Batch& batch, int64_t image, const Tile& tile, int64_t first,
                               int64_t channels, bool checks) const {
  const Images& input = batch.plan->input;
  const Runs& runs = batch.plan->runs;
  const size_t floats = static_cast<size_t>(staged_floats(runs, channels));
  float* to = scratch().columns.floats(floats);
  const float* pixels = stage_tile(batch.x + input.offset(image, first), input.channel_stride(),
                                   channels, runs, tile, to);
  if (checks && !batch.checked && !staged_finite(runs, channels, tile, to))
    batch.bad_input.store(true, std::memory_order_relaxed);
  return pixels;
}

void Conv::run_share(const Batch& batch, const float* pixels, int64_t image,
                     const Share& share) const {
  const ConvPlan& plan = *batch.plan;
  const Images& output = plan.output;
  const int64_t begin = weights_.groups * share.chunk / share.chunks;
  const int64_t end = weights_.groups * (share.chunk + 1) / share.chunks;
  const int64_t tiles = static_cast<int64_t>(plan.tiles.size());
  const bool checks = plan.runs.in_place && !batch.checked && share.chunk == 0;
  for (int64_t part = 0; part < parts_; ++part) {
    if (output.planes) {
      const int64_t first = begin * weights_.block;
      const int64_t last = std::min(end * weights_.block, weights_.outputs);
      clear_borders(output, batch.y + output.offset(image, part * weights_.outputs + first),
                    last - first, share.tile_begin == 0, share.tile_end == tiles);
    }
    for (int64_t t = share.tile_begin; t < share.tile_end; ++t) {
      if (checks && part == 0) check_tile(batch, pixels, plan.tiles[t]);
      run_tile(batch, pixels, image, plan.tiles[t], part, begin, end);
    }
  }
}

void Conv::run_tile(const Batch& batch, const float* pixels, int64_t image, const Tile& tile,
                    int64_t part, int64_t group_begin, int64_t group_end) const {
  const ConvPlan& plan = *batch.plan;
  const RangedWeights& w = plan.ranged[part];
  const Images& output = plan.output;
  const int64_t channels_per_part = channels_ / parts_;
  const bool direct = tile.direct && (!batch.residual || residual_planes_ == output_planes_);
  // A buffer holds some groups at a time; without one all go at once.
  const int64_t most = plan.runs.by_tile ? kSumsByTile : kSumsBytes;
  const bool buffered = !direct || (plan.runs.by_tile && w.ranges > 1);
  const int64_t length = whole_lines(tile.length);
  const int64_t step = buffered ? std::max<int64_t>(most / (length * 4 * weights_.block), 1)
                                : group_end - group_begin;
  const int64_t buffer = std::min(step, group_end - group_begin) * weights_.block * length;
  float* sums = buffered ? scratch().sums.floats(static_cast<size_t>(buffer)) : nullptr;
  for (int64_t group = group_begin; group < group_end; group += step) {
    const int64_t end = std::min(group + step, group_end);
    const int64_t first_output = group * weights_.block;
    const int64_t channel = part * weights_.outputs + first_output;
    const int64_t at = output.offset(image, channel) + tile.first - batch.before;
    Strip strip{};
    strip.values = w.values.data();
    strip.offsets = w.indices.data();
    strip.out = direct ? batch.y + at : sums;
    strip.stride = direct ? output.channel_stride() : length;
    strip.sums = sums;
    strip.sums_stride = length;
    const bool whole = plan.runs.by_tile && has_whole_vectors(plan.runs);
    strip.base_back = whole ? 0 : tile.back;
    strip.sums_back = whole && direct ? 0 : tile.back;
    strip.group_begin = 0;
    strip.group_end = end - group;
    strip.back = tile.back;
    strip.outputs = std::min(end * weights_.block, weights_.outputs) - first_output;
    strip.bias = weights_.bias.data() + part * weights_.groups * weights_.block + first_output;
    strip.keep = output.planes && !tile.whole ? plan.keep.data() + tile.first : nullptr;
    strip.ends_rows = direct && tile.ends_rows;
    strip.low = activation_.low;
    strip.high = activation_.high;
    bool not_finite = false;
    strip.not_finite = output.planes ? &not_finite : nullptr;
    for (int64_t range = 0; range < w.ranges; ++range) {
      const int64_t from = part * channels_per_part + range * plan.range_channels;
      strip.starts = w.starts.data() + range * (weights_.groups + 1) + group;
      const int64_t channels = std::min(plan.range_channels, (part + 1) * channels_per_part - from);
      const float* first_pixel =
          plan.runs.by_tile
              ? stage_range(batch, image, tile, from, channels, group == 0)
              : pixels + from * plan.runs.channel_stride + tile.first;
      strip.base = reinterpret_cast<const char*>(first_pixel);
      strip.first = range == 0;
      strip.last = direct && range + 1 == w.ranges;
      // An output in the residual's memory holds the sums between ranges: the residual is added in
      // the first.
      const bool adds =
          direct && batch.residual &&
          range == (batch.in_residual() && !buffered ? 0 : w.ranges - 1);
      strip.residual = adds ? batch.residual + at : nullptr;
      tile.run(strip);
    }
    if (!direct) {
      const Images& residuals = batch.residuals;
      const float* add =
          batch.residual ? batch.residual + residuals.offset(image, channel) : nullptr;
      not_finite |= !scatter(sums, strip.outputs, tile, plan,
                             batch.y + (output.offset(image, channel) - batch.before),
                             {add, residuals.row_stride(), residuals.channel_stride()}, activation_);
    }
    if (not_finite) batch.bad_output.store(true, std::memory_order_relaxed);
    for (int64_t o = 0; o < strip.outputs && direct && activation_.gelu; ++o)
      activation_.apply_gelu(batch.y + at + o * output.channel_stride(), tile.length);
  }
}

}  // namespace mfac
