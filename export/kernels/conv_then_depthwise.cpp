#include "conv_then_depthwise.hpp"

#include <algorithm>

#include "conv_depthwise.hpp"

namespace mfac {
namespace {

constexpr size_t kDepthwiseWeights = 5, kDepthwiseBias = 6;
constexpr int64_t kChunkBytes = 256 << 10;  // of the images between the convolutions

// Room for some channels, and for what is read around them.
float* room_between(int64_t floats) {
  return scratch().between.floats(static_cast<size_t>(floats + 2 * kDepthwiseReach)) +
         kDepthwiseReach;
}

}  // namespace

ConvDepthwise::ConvDepthwise(const NodeInfo& node)
    : conv_(node, true), activation_(read_activation(node, "depthwise_")) {
  require(conv_.parts_ == 1 && !conv_.window_.line,
          "group must be 1, and kernel_shape have 2 numbers");
  const int64_t channels = conv_.weights_.outputs;
  const Tensor weights = node.constant(kDepthwiseWeights, "depthwise_weights", ort::kFloat, false);
  const Shape& shape = weights.shape;
  require(shape.rank == 4 && shape.dims[0] == channels && shape.dims[1] == 1,
          "depthwise_weights must be [out_channels, 1, height, width]. Got ", shape);
  window_ = read_depthwise_window(node, shape.dims[2], shape.dims[3]);
  require(is_depthwise(channels, channels, channels, window_),
          "depthwise_weights must be 3x3 or 5x5, depthwise_strides 1 or 2, and depthwise_pads "
          "smaller than the window");
  weights_.assign(weights.floats(), weights.floats() + element_count(shape));
  bias_.assign(static_cast<size_t>(channels), 0.0f);
  const Tensor bias = node.constant(kDepthwiseBias, "depthwise_bias", ort::kFloat, true);
  has_bias_ = static_cast<bool>(bias);
  if (!has_bias_) return;
  require(bias.shape.rank == 1 && bias.shape.dims[0] == channels,
          "depthwise_bias must have one number an output. Got ", bias.shape);
  bias_.assign(bias.floats(), bias.floats() + channels);
}

void ConvDepthwise::run(const Call& call) const {
  const Tensor x = call.input(kX);
  require(static_cast<bool>(x), "X must be there");
  require(conv_.weights_.has_bias || !call.input(kBias), "bias must be a constant initializer");
  require(has_bias_ || !call.input(kDepthwiseBias),
          "depthwise_bias must be a constant initializer");
  int64_t images = 0;
  Sizes sizes;
  sizes.input = read_images(x.shape, conv_.channels_, conv_.window_, false, &images);
  sizes.between = output_images(sizes.input, conv_.window_, conv_.weights_.outputs, false);
  sizes.output = output_images(sizes.between, window_, conv_.weights_.outputs, false);
  const Shape shape = sizes.output.shape(images);
  element_count(shape);
  element_count(sizes.between.shape(1));
  Images input = sizes.input, output = sizes.between;
  if (conv_.window_.pointwise())
    for (Images* flat : {&input, &output}) flat->flatten();
  Conv::Batch batch;
  batch.count = 1;
  batch.plan = conv_.plans_.find(input.height, input.width, [&] {
    return make_plan(conv_.weights_, conv_.window_, input, output);
  });
  float* y = call.output(shape);
  for (int64_t image = 0; image < images; ++image) {
    batch.x = x.floats() + image * sizes.input.image_stride();
    batch.bad_input = false;
    run_image(call, batch, sizes, y + image * sizes.output.image_stride());
  }
}

void ConvDepthwise::run_image(const Call& call, Conv::Batch& batch, const Sizes& sizes,
                              float* y) const {
  const int64_t groups = conv_.weights_.groups;
  const int64_t floats = sizes.between.image_stride();
  const int64_t work =
      static_cast<int64_t>(conv_.weights_.values.size()) * batch.plan->runs.length +
      sizes.output.image_stride() * window_.taps();
  const int64_t fitting = (floats * 4 + kChunkBytes - 1) / kChunkBytes;
  const bool alone = batch.plan->runs.by_tile && !conv_.threads_.may_be_several();
  const int64_t most = alone ? 1 : kMostTasks;
  const int64_t tasks = std::min(std::clamp<int64_t>(work / kTaskWork, 1, most), groups);
  const int64_t chunks = std::min(std::max(fitting, tasks), groups);
  const float* pixels = conv_.stage(batch, 0, scratch().inputs, &call);
  auto task = [&, caller = std::this_thread::get_id()](size_t index) {
    conv_.threads_.ran_for(caller);
    const int64_t i = static_cast<int64_t>(index);
    const int64_t end = chunks * (i + 1) / tasks;
    const int64_t tiles = static_cast<int64_t>(batch.plan->tiles.size());
    for (int64_t chunk = chunks * i / tasks; chunk < end; ++chunk)
      run_chunk(batch, pixels, sizes, {0, tiles, chunk, chunks}, y);
  };
  call.parallel(static_cast<size_t>(tasks), task);
  if (batch.bad_input) run_dense(batch, sizes, y);
}

void ConvDepthwise::run_chunk(const Conv::Batch& batch, const float* pixels, const Sizes& sizes,
                              const Share& share, float* y) const {
  const PackedWeights& w = conv_.weights_;
  const int64_t first = w.groups * share.chunk / share.chunks * w.block;
  const int64_t end = w.groups * (share.chunk + 1) / share.chunks * w.block;
  const int64_t count = std::min(end, w.outputs) - first;
  const int64_t stride = sizes.between.channel_stride();
  float* between = room_between(count * stride);
  Conv::Batch chunk;
  chunk.plan = batch.plan;
  chunk.x = batch.x;
  chunk.count = 1;
  chunk.y = between;
  chunk.before = first * stride;
  conv_.run_share(chunk, pixels, 0, share);
  if (chunk.bad_input) batch.bad_input.store(true, std::memory_order_relaxed);
  run_depthwise(sizes, first, count, between, y);
}

// An image with a NaN or an infinity.
void ConvDepthwise::run_dense(Conv::Batch& batch, const Sizes& sizes, float* y) const {
  batch.y = room_between(sizes.between.image_stride());
  conv_.run_dense(batch);
  run_depthwise(sizes, 0, sizes.between.channels, batch.y, y);
}

void ConvDepthwise::run_depthwise(const Sizes& sizes, int64_t first, int64_t count,
                                  const float* from, float* y) const {
  Depthwise<float> all{};
  all.weights = weights_.data();
  all.bias = bias_.data();
  all.step = 1;
  all.low = activation_.low;
  all.high = activation_.high;
  run_depthwise_channels(all, window_, sizes.between, sizes.output, first, count, from, y);
  const int64_t stride = sizes.output.channel_stride();
  activation_.apply_gelu(y + first * stride, count * stride);
}

}  // namespace mfac
