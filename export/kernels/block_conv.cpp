#include "block_conv.hpp"

#include <algorithm>
#include <cstring>

#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kOutputBytes = 16 << 10;
constexpr int64_t kReadBeyond = 64;       // the widest strip

}  // namespace

struct BlockConv::Batch {
  std::shared_ptr<const BlockPlan> plan;
  const uint8_t* x;
  uint8_t* y;
  const uint8_t* residual;  // null if nothing is added
};

BlockConv::BlockConv(const NodeInfo& node, std::optional<ByteAddition> addition)
    : parts_(node.integer("group")),
      channels_(divided(node, "in_channels", parts_)),
      window_(read_window(node)),
      weights_(read_quantised(
          node, QuantisedFormat::kBlocks,
          {divided(node, "out_channels", parts_), channels_, window_.taps(), parts_})),
      addition_(addition) {
  require(read_format(node) == QuantisedFormat::kBlocks, "block must be 4");
}

void BlockConv::run(const Call& call, const Place& place) const {
  const Tensor x = call.input(kX, ort::kUint8);
  require(static_cast<bool>(x), "X must be there");
  require(weights_.blocks.has_bias || !call.input(kSumBias, ort::kInt32),
          "bias must be a constant initializer");
  int64_t count = 0;
  Images input = read_images(x.shape, parts_ * channels_, window_, false, &count);
  Images output = output_images(input, window_, parts_ * weights_.blocks.outputs, false);
  const Shape shape = output.shape(count);
  element_count(shape);
  const Tensor residual = addition_ ? call.input(kSumResidual, ort::kUint8) : Tensor{};
  require(!addition_ || residual.shape == shape, "residual must be ", shape, ". Got ",
          residual.shape);
  if (window_.pointwise())
    for (Images* images : {&input, &output}) images->flatten();
  Batch batch{};
  batch.plan = plans_.find(input.height, input.width,
                           [&] { return make_block_plan(weights_.blocks, window_, input, output); });
  batch.x = x.bytes();
  batch.y = place(shape);
  batch.residual = residual.bytes();
  int64_t steps = 0;
  for (const Steps& part : batch.plan->parts) steps += static_cast<int64_t>(part.all.size());
  const Sharing sharing{count, static_cast<int64_t>(batch.plan->tiles.size()),
                        weights_.blocks.groups,
                        steps * kStepInputs * batch.plan->runs.length};
  parallel_for(
      call, sharing,
      [&](int64_t image, Buffer& buffer, const Call* shared) {
        return stage(batch, image, buffer, shared);
      },
      [&](const uint8_t* pixels, int64_t image, const Share& share) {
        run_share(batch, pixels, image, share);
      });
}

// In parallel if a call is given; else on this thread.
const uint8_t* BlockConv::stage(const Batch& batch, int64_t image, Buffer& buffer,
                                const Call* call) const {
  const BlockPlan& plan = *batch.plan;
  const Runs& runs = plan.runs;
  const int64_t channels = plan.input.channels;
  const uint8_t* from = batch.x + plan.input.offset(image, 0);
  if (runs.in_place) return from;
  const int64_t all = channels * runs.channel_stride;
  uint8_t* staged = buffer.bytes(static_cast<size_t>(all + kReadBeyond));
  in_parts(call, channels, all, [&](int64_t first, int64_t end) {
    stage_channels(batch, end - first, from + first * plan.input.channel_stride(),
                   staged + first * runs.channel_stride);
  });
  std::memset(staged + all, 0, kReadBeyond);
  return staged;
}

void BlockConv::stage_channels(const Batch& batch, int64_t channels, const uint8_t* pixels,
                               uint8_t* staged) const {
  const Runs& runs = batch.plan->runs;
  ByteCopy copy{};
  copy.channels = channels;
  copy.from_channel = batch.plan->input.channel_stride();
  copy.to_channel = runs.channel_stride;
  copy.to = staged;
  copy.to_stride = runs.row_stride;
  copy.around = weights_.x_zero_point;
  each_phase(runs, [&](const PhaseCopy& phase) {
    copy.from = pixels + phase.from;
    copy.from_stride = phase.down;
    copy.above = phase.above;
    copy.rows = phase.rows;
    copy.below = phase.below;
    copy.step = phase.step;
    copy.before = phase.before;
    copy.count = phase.count;
    simd_kernels().bytes.copy_channels(copy);
    copy.to += runs.phase_stride;
  });
}

void BlockConv::run_share(const Batch& batch, const uint8_t* pixels, int64_t image,
                          const Share& share) const {
  const int64_t begin = weights_.blocks.groups * share.chunk / share.chunks;
  const int64_t end = weights_.blocks.groups * (share.chunk + 1) / share.chunks;
  for (int64_t part = 0; part < parts_; ++part)
    for (int64_t t = share.tile_begin; t < share.tile_end; ++t)
      run_tile(batch, pixels, image, batch.plan->tiles[t], part, begin, end);
}

void BlockConv::run_tile(const Batch& batch, const uint8_t* pixels, int64_t image,
                         const BlockTile& tile, int64_t part, int64_t group_begin,
                         int64_t group_end) const {
  const BlockPlan& plan = *batch.plan;
  const Images& output = plan.output;
  const Steps& steps = plan.parts[part];
  const int64_t step =
      tile.direct() ? group_end - group_begin : kOutputBytes / (tile.length * kBlockOutputs);
  uint8_t* bytes = tile.direct() ? nullptr : scratch().outputs.bytes(kOutputBytes);
  const int64_t stride = plan.runs.channel_stride;
  const uint8_t* base = pixels + part * channels_ * stride + tile.first;
  if (plan.column > 0) {
    uint8_t* columns = scratch().columns.bytes(static_cast<size_t>(channels_ * plan.column));
    simd_kernels().bytes.gather(base, stride, channels_, tile.count, columns, plan.column);
    base = columns;
  }
  for (int64_t group = group_begin; group < group_end; group += step) {
    const int64_t end = std::min(group + step, group_end);
    const int64_t first = group * kBlockOutputs;
    const int64_t at = part * weights_.blocks.groups * kBlockOutputs + first;  // padded
    uint8_t* out = batch.y + output.offset(image, part * weights_.blocks.outputs + first) +
                   tile.first + tile.skip;
    ByteStrip strip{};
    strip.steps = steps.all.data();
    strip.starts = steps.starts.data() + group;
    strip.base = base;
    strip.out = tile.direct() ? out : bytes;
    strip.out_stride = tile.direct() ? output.channel_stride() : tile.length;
    strip.groups = end - group;
    strip.outputs = std::min(end * kBlockOutputs, weights_.blocks.outputs) - first;
    strip.begin = weights_.blocks.bias.data() + at;
    strip.scales = weights_.scales.data() + at;
    strip.requantise = weights_.requantise;
    if (addition_) add_residual(batch, tile, out - batch.y, strip);
    tile.run(strip);
    for (int64_t o = 0; o < strip.outputs && !tile.direct(); ++o)
      std::memcpy(out + o * output.channel_stride(), bytes + o * tile.length + tile.skip,
                  static_cast<size_t>(tile.count - tile.skip));
  }
}

// A strip reads as many positions of the residual as it computes: where the tile has fewer, from a
// copy.
void BlockConv::add_residual(const Batch& batch, const BlockTile& tile, int64_t at,
                             ByteStrip& strip) const {
  const int64_t stride = batch.plan->output.channel_stride();
  strip.addition = *addition_;
  strip.residual = batch.residual + at;
  strip.residual_stride = stride;
  if (tile.direct()) return;
  uint8_t* copy = scratch().between.bytes(static_cast<size_t>(strip.outputs * tile.length));
  simd_kernels().bytes.gather(strip.residual, stride, strip.outputs, tile.count - tile.skip,
                              copy + tile.skip, tile.length);
  strip.residual = copy;
  strip.residual_stride = tile.length;
}

}  // namespace mfac
