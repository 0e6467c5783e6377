#include "quad_conv.hpp"

#include <algorithm>
#include <cstring>

#include "quad_stage.hpp"

namespace mfac {
namespace {

constexpr int64_t kSumsBytes = 16 << 10;

}  // namespace

struct QuadConv::Batch {
  std::shared_ptr<const QuadPlan> plan;
  const uint8_t* x;
  uint8_t* y;
  Images input;  // in bytes; the plan's is in cells
};

QuadConv::QuadConv(const NodeInfo& node)
    : parts_(node.integer("group")),
      channels_(divided(node, "in_channels", parts_)),
      quads_(quads_of(channels_)),
      window_(read_window(node)),
      weights_(read_quantised(
          node, QuantisedFormat::kQuads,
          {divided(node, "out_channels", parts_), channels_, window_.taps(), parts_})) {}

void QuadConv::run(const Call& call) const {
  const Tensor x = call.input(kX, ort::kUint8);
  require(static_cast<bool>(x), "X must be there");
  require(weights_.blocks.has_bias || !call.input(kSumBias, ort::kInt32),
          "bias must be a constant initializer");
  int64_t count = 0;
  Batch batch{};
  batch.input = read_images(x.shape, parts_ * channels_, window_, false, &count);
  Images cells = batch.input;
  cells.channels = parts_ * quads_;
  Images output = output_images(cells, window_, parts_ * weights_.blocks.outputs, false);
  const Shape shape = output.shape(count);
  element_count(shape);
  if (window_.pointwise())
    for (Images* images : {&batch.input, &cells, &output}) images->flatten();
  batch.plan = plans_.find(cells.height, cells.width,
                           [&] { return make_quad_plan(weights_.blocks, window_, cells, output); });
  batch.x = x.bytes();
  batch.y = call.output_bytes(shape);
  const Sharing sharing{
      count, static_cast<int64_t>(batch.plan->tiles.size()), weights_.blocks.groups,
      static_cast<int64_t>(weights_.blocks.values.size()) * batch.plan->runs.length};
  parallel_for(
      call, sharing,
      [&](int64_t image, Buffer& buffer, const Call* shared) {
        return stage(batch, image, buffer, shared);
      },
      [&](const Cell* pixels, int64_t image, const Share& share) {
        run_share(batch, pixels, image, share);
      });
}

// In parallel if a call is given; else on this thread.
const Cell* QuadConv::stage(const Batch& batch, int64_t image, Buffer& buffer,
                                 const Call* call) const {
  const Runs& runs = batch.plan->runs;
  const int64_t quads = parts_ * quads_;
  const int64_t all = quads * runs.channel_stride;
  const int64_t beyond = Images::kReadBeyond + window_.pads[1];
  Cell* staged = buffer.cells(static_cast<size_t>(all + beyond));
  const uint8_t around = weights_.x_zero_point;
  const int64_t bytes = all * static_cast<int64_t>(sizeof(Cell));
  in_parts(call, quads, bytes, [&](int64_t first, int64_t end) {
    for (int64_t q = first; q < end; ++q) {
      const int64_t channel = q % quads_ * kQuad;
      const uint8_t* pixels = batch.x + batch.input.offset(image, q / quads_ * channels_ + channel);
      stage_quad(pixels, batch.input, std::min(kQuad, channels_ - channel), around, runs,
                 staged + q * runs.channel_stride);
    }
  });
  std::memset(staged + all, around, static_cast<size_t>(beyond) * sizeof(Cell));
  return staged;
}

void QuadConv::run_share(const Batch& batch, const Cell* pixels, int64_t image,
                              const Share& share) const {
  const int64_t begin = weights_.blocks.groups * share.chunk / share.chunks;
  const int64_t end = weights_.blocks.groups * (share.chunk + 1) / share.chunks;
  for (int64_t part = 0; part < parts_; ++part)
    for (int64_t t = share.tile_begin; t < share.tile_end; ++t)
      run_tile(batch, pixels, image, batch.plan->tiles[t], part, begin, end);
}

void QuadConv::run_tile(const Batch& batch, const Cell* pixels, int64_t image,
                             const QuadTile& tile, int64_t part, int64_t output_begin,
                             int64_t output_end) const {
  const QuadPlan& plan = *batch.plan;
  const RangedBlocks<Cell>& w = plan.ranged[part];
  const Images& output = plan.output;
  const int64_t positions = tile.length;
  const int64_t step = std::max<int64_t>(kSumsBytes / (positions * 4), 1);
  int32_t* sums =
      w.ranges > 1 ? scratch().sums.cells(static_cast<size_t>(step * positions)) : nullptr;
  uint8_t* bytes =
      tile.direct ? nullptr : scratch().outputs.bytes(static_cast<size_t>(step * positions + 16));
  for (int64_t first = output_begin; first < output_end; first += step) {
    const int64_t channel = part * weights_.blocks.outputs + first;
    QuadStrip strip{};
    strip.values = w.values.data();
    strip.offsets = w.indices.data();
    strip.sums = sums;
    strip.sums_stride = sums == nullptr ? 0 : positions;
    strip.out = tile.direct ? batch.y + output.offset(image, channel) + tile.first : bytes;
    strip.out_stride = tile.direct ? output.channel_stride() : positions;
    strip.outputs = std::min(step, output_end - first);
    strip.begin = weights_.blocks.bias.data() + channel;
    strip.scales = weights_.scales.data() + channel;
    strip.requantise = weights_.requantise;
    for (int64_t range = 0; range < w.ranges; ++range) {
      const int64_t from = part * quads_ + range * plan.range_channels;
      strip.starts = w.starts.data() + range * (weights_.blocks.groups + 1) + first;
      strip.base =
          reinterpret_cast<const char*>(pixels + from * plan.runs.channel_stride + tile.first);
      strip.first = range == 0;
      strip.last = range + 1 == w.ranges;
      tile.run(strip);
    }
    // The next channel begins after the last position.
    for (int64_t o = 0; o < strip.outputs && !tile.direct; ++o)
      std::memcpy(batch.y + output.offset(image, channel + o) + tile.first, bytes + o * positions,
                  static_cast<size_t>(plan.runs.length - tile.first));
  }
}

}  // namespace mfac
