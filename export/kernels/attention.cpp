#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

constexpr int64_t kTasks = 4;  // if there are fewer heads, several tasks share one
constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

}  // namespace

Attention::Attention(const NodeInfo& node)
    : heads_(node.integer("num_heads")),
      size_(node.integer("head_size")),
      offsets_{node.integer("query_offset"), node.integer("key_offset"),
               node.integer("value_offset")},
      scale_(node.real("scale")),
      nan_to_zero_(node.integer("nan_to_zero") != 0) {
  require(heads_ >= 1 && heads_ <= kLargest && size_ >= 1 && size_ <= kLargest,
          "num_heads and head_size must lie in [1, 2^31)");
  for (int64_t offset : offsets_)
    require(offset >= 0 && offset <= kLargest, "offsets must lie in [0, 2^31). Got ", offset);
  require(std::isfinite(scale_) && scale_ > 0, "scale must be finite and positive");
}

Attention::Rows Attention::read_rows(const Call& call, Input input, const char* name,
                                     int64_t offset, int64_t* batch) const {
  const Tensor tensor = call.input(input);
  const Shape& shape = tensor.shape;
  require(tensor && shape.rank == 3 && shape.dims[2] >= offset + heads_ * size_ &&
              (*batch < 0 || shape.dims[0] == *batch),
          name, " must be [batch, length, at least ", offset + heads_ * size_, "]. Got ", shape);
  *batch = shape.dims[0];
  return {tensor.floats() + offset, shape.dims[1], shape.dims[2]};
}

Attention::Mask Attention::read_mask(const Call& call, const Inputs& inputs) const {
  const Tensor tensor = call.input(kMask);
  if (!tensor) return {};
  const int64_t* dims = tensor.shape.dims;
  const int64_t full[] = {inputs.batch, heads_, inputs.query.count, inputs.key.count};
  bool fits = tensor.shape.rank == 4 && dims[3] == full[3];
  for (int axis = 0; axis < 3 && fits; ++axis) fits = dims[axis] == 1 || dims[axis] == full[axis];
  require(fits, "mask must be [batch or 1, heads or 1, queries or 1, keys]. Got ", tensor.shape);
  const int64_t query = dims[3], head = dims[2] * query, batch = dims[1] * head;
  return {tensor.floats(), dims[0] == 1 ? 0 : batch, dims[1] == 1 ? 0 : head,
          dims[2] == 1 ? 0 : query};
}

void Attention::run(const Call& call) const {
  Inputs inputs{-1, {}, {}, {}, {}, nullptr};
  inputs.query = read_rows(call, kQuery, "query", offsets_[0], &inputs.batch);
  inputs.key = read_rows(call, kKey, "key", offsets_[1], &inputs.batch);
  inputs.value = read_rows(call, kValue, "value", offsets_[2], &inputs.batch);
  require(inputs.value.count == inputs.key.count, "there must be a value for each of the ",
          inputs.key.count, " keys. Got ", inputs.value.count);
  inputs.mask = read_mask(call, inputs);
  Shape shape{{inputs.batch, inputs.query.count, heads_ * size_}, 3};
  inputs.y = call.output(shape);
  const int64_t count = element_count(shape);
  if (inputs.key.count == 0) std::fill_n(inputs.y, count, 0.0f);
  if (count == 0 || inputs.key.count == 0) return;
  const int64_t tile = int64_t{simd_kernels().wide.lanes} * simd_kernels().attention.vectors;
  const int64_t heads = inputs.batch * heads_;
  const int64_t chunks =
      std::clamp<int64_t>(kTasks / heads, 1, (inputs.query.count + tile - 1) / tile);
  auto task = [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index) / chunks;
    const int64_t chunk = static_cast<int64_t>(index) % chunks;
    run_head(inputs, at / heads_, at % heads_, inputs.query.count * chunk / chunks,
             inputs.query.count * (chunk + 1) / chunks);
  };
  call.parallel(static_cast<size_t>(heads * chunks), task);
}

// Some queries of a head, in tiles of about equal length. The head's values are copied to where they
// are contiguous: their rows are often a power of two apart, which a cache has few places for.
void Attention::run_head(const Inputs& inputs, int64_t batch, int64_t head, int64_t first,
                         int64_t last) const {
  const Rows& value = inputs.value;
  float* values = scratch().between.floats(static_cast<size_t>(value.count * size_));
  const float* from = value.head(batch, head, size_);
  for (int64_t row = 0; row < value.count; ++row)
    std::memcpy(values + row * size_, from + row * value.stride,
                static_cast<size_t>(size_) * sizeof(float));
  const int64_t lanes = simd_kernels().wide.lanes;
  const int64_t vectors = (last - first + lanes - 1) / lanes;
  const int64_t most = simd_kernels().attention.vectors;
  const int64_t tiles = (vectors + most - 1) / most;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = first + vectors * tile / tiles * lanes;
    const int64_t end = std::min(first + vectors * (tile + 1) / tiles * lanes, last);
    run_tile(inputs, batch, head, values, begin, end - begin);
  }
}

void Attention::run_tile(const Inputs& inputs, int64_t batch, int64_t head, const float* values,
                         int64_t first, int64_t count) const {
  const SimdKernels& simd = simd_kernels();
  const int64_t lanes = simd.wide.lanes, keys = inputs.key.count;
  const int64_t vectors = (count + lanes - 1) / lanes, height = vectors * lanes;
  const AttentionKernels::Width& run = simd.attention.width[vectors];
  float* queries = scratch().columns.floats(static_cast<size_t>(size_ * height));
  float* scores = scratch().sums.floats(static_cast<size_t>((2 * keys + 2) * height));
  float *largest = scores + keys * height, *sums = largest + height, *masks = sums + height;

  const auto to_columns = [&](const float* rows, int64_t stride, int64_t width, float* columns) {
    for (int64_t row = 0; row < count; row += lanes)
      simd.to_columns(rows + row * stride, stride, std::min(count - row, lanes), width,
                      columns + row, height);
  };
  const Rows& query = inputs.query;
  to_columns(query.head(batch, head, size_) + first * query.stride, query.stride, size_, queries);
  run.product({inputs.key.head(batch, head, size_), inputs.key.stride, 1, keys, size_, queries,
               scores, height, largest});

  Scores all{scores, keys, height, scale_, largest, nullptr, nullptr, nan_to_zero_, sums};
  if (const Mask& mask = inputs.mask; mask.data) {
    const float* of_head = mask.data + batch * mask.batch + head * mask.head;
    if (mask.query == 0) {
      all.key_mask = of_head;
    } else {
      to_columns(of_head + first * mask.query, mask.query, keys, masks);
      all.mask = masks;
    }
  }
  run.exponentials(all);

  float* out = queries;  // no longer needed
  run.product({values, 1, size_, size_, keys, scores, out, height, nullptr});
  simd.attention.divide_columns(out, size_, height, height, sums);
  const float infinity = std::numeric_limits<float>::infinity();
  const int64_t width = heads_ * size_;
  float* y = inputs.y + (batch * query.count + first) * width + head * size_;
  for (int64_t row = 0; row < count; row += lanes)
    simd.to_rows(out + row, height, std::min(count - row, lanes), size_, y + row * width, nullptr,
                 width, -infinity, infinity);
}

}  // namespace mfac
