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
constexpr const char* kNames[] = {"query", "key", "value"};

bool is_flag(int64_t number) { return number == 0 || number == 1; }

// Copy rows next to each other: where they are a power of two apart, few of them fit in a cache.
const float* gather_rows(const float* rows, int64_t stride, int64_t count, int64_t width) {
  float* all = scratch().between.floats(static_cast<size_t>(count * width));
  for (int64_t row = 0; row < count; ++row)
    std::memcpy(all + row * width, rows + row * stride, static_cast<size_t>(width) * sizeof(float));
  return all;
}

}  // namespace

Attention::Attention(const NodeInfo& node)
    : heads_(node.integer("num_heads")),
      size_(node.integer("head_size")),
      offsets_{node.integer("query_offset"), node.integer("key_offset"),
               node.integer("value_offset")},
      scale_(node.real("scale")) {
  require(heads_ >= 1 && heads_ <= kLargest && size_ >= 1 && size_ <= kLargest,
          "num_heads and head_size must lie in [1, 2^31)");
  for (int64_t offset : offsets_)
    require(offset >= 0 && offset <= kLargest, "offsets must lie in [0, 2^31). Got ", offset);
  require(std::isfinite(scale_) && scale_ > 0, "scale must be finite and positive");
  const int64_t nan_to_zero = node.integer("nan_to_zero"), first = node.integer("length_first");
  require(is_flag(nan_to_zero) && is_flag(first), "nan_to_zero and length_first must be 0 or 1");
  nan_to_zero_ = nan_to_zero == 1;
  length_first_ = first == 1;
}

Attention::Rows Attention::describe(const Shape& shape) const {
  const int64_t batch = shape.dims[length_first_ ? 1 : 0];
  const int64_t length = shape.dims[length_first_ ? 0 : 1], features = shape.dims[2];
  if (element_count(shape) == 0) return {batch, length, 0, 0};  // a product might overflow
  if (length_first_) return {batch, length, features, batch * features};
  return {batch, length, length * features, features};
}

Attention::Source Attention::read_source(const Call& call, Input input) const {
  const Tensor tensor = call.input(input);
  const int64_t needed = offsets_[input] + heads_ * size_;
  require(tensor && tensor.shape.rank == 3 && tensor.shape.dims[2] >= needed, kNames[input],
          " must be ", length_first_ ? "[length, batch" : "[batch, length", ", at least ", needed,
          "]. Got ", tensor.shape);
  return {describe(tensor.shape), tensor.floats() + offsets_[input]};
}

Attention::Mask Attention::read_mask(const Call& call, const Operands& operands) const {
  const Tensor tensor = call.input(kMask);
  if (!tensor) return {};
  const Shape& shape = tensor.shape;
  const int64_t full[] = {operands.query.batch, heads_, operands.query.length, operands.key.length};
  int64_t strides[4] = {}, stride = element_count(shape) == 0 ? 0 : 1;  // else it might overflow
  bool fits = shape.rank >= 1 && shape.rank <= 4;
  for (size_t end = 1; fits && end <= shape.rank; ++end) {
    const int64_t size = shape.dims[shape.rank - end];
    fits = size == full[4 - end] || (size == 1 && end > 1);
    strides[4 - end] = size == 1 ? 0 : stride;
    stride *= size;
  }
  require(fits, "mask must be [batch or 1, heads or 1, queries or 1, keys], or without some of the "
          "first axes. Got ", shape);
  return {tensor.floats(), strides[0], strides[1], strides[2]};
}

Attention::Operands Attention::read(const Call& call) const {
  Operands operands{
      read_source(call, kQuery), read_source(call, kKey), read_source(call, kValue), {}, {}};
  const int64_t batch = operands.query.batch;
  require(operands.key.batch == batch && operands.value.batch == batch,
          "query, key and value must have one batch size. Got ", batch, ", ", operands.key.batch,
          " and ", operands.value.batch);
  require(operands.value.length == operands.key.length, "there must be a value for each of the ",
          operands.key.length, " keys. Got ", operands.value.length);
  operands.mask = read_mask(call, operands);
  return operands;
}

Attention::Head Attention::head_of(const Operands& operands, float* output, int64_t batch,
                                   int64_t head) const {
  const auto first_row = [&](const Source& source) {
    return source.data + batch * source.batch_stride + head * size_;
  };
  const Source& value = operands.value;
  const Mask& mask = operands.mask;
  return {first_row(operands.query), first_row(operands.key),
          gather_rows(first_row(value), value.row_stride, value.length, size_),
          mask.data ? mask.data + batch * mask.batch + head * mask.head : nullptr,
          output + batch * operands.y.batch_stride + head * size_};
}

void Attention::run(const Call& call) const {
  Operands operands = read(call);
  const int64_t batch = operands.query.batch, queries = operands.query.length;
  const Shape shape = length_first_ ? Shape{{queries, batch, heads_ * size_}, 3}
                                    : Shape{{batch, queries, heads_ * size_}, 3};
  float* const output = call.output(shape);
  const int64_t count = element_count(shape);
  if (operands.key.length == 0) std::fill_n(output, count, 0.0f);
  if (count == 0 || operands.key.length == 0) return;
  operands.y = describe(shape);
  const int64_t tile = int64_t{simd_kernels().wide.lanes} * simd_kernels().attention.vectors;
  const int64_t most = (queries + tile - 1) / tile;
  const int64_t parts = std::clamp<int64_t>(kTasks / (batch * heads_), 1, most);
  auto task = [&](size_t index) {
    const int64_t head = static_cast<int64_t>(index) / parts;
    const int64_t part = static_cast<int64_t>(index) % parts;
    run_tiles(operands, head_of(operands, output, head / heads_, head % heads_),
              queries * part / parts, queries * (part + 1) / parts);
  };
  call.parallel(static_cast<size_t>(batch * heads_ * parts), task);
}

// Some queries of a head, in tiles of about equal length.
void Attention::run_tiles(const Operands& operands, const Head& head, int64_t first,
                          int64_t last) const {
  const int64_t lanes = simd_kernels().wide.lanes;
  const int64_t vectors = (last - first + lanes - 1) / lanes;
  const int64_t most = simd_kernels().attention.vectors;
  const int64_t tiles = (vectors + most - 1) / most;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = first + vectors * tile / tiles * lanes;
    const int64_t end = std::min(first + vectors * (tile + 1) / tiles * lanes, last);
    run_tile(operands, head, begin, end - begin);
  }
}

void Attention::run_tile(const Operands& operands, const Head& head, int64_t first,
                         int64_t count) const {
  const SimdKernels& simd = simd_kernels();
  const int64_t lanes = simd.wide.lanes, keys = operands.key.length;
  const int64_t vectors = (count + lanes - 1) / lanes, height = vectors * lanes;
  const AttentionKernels::Width& run = simd.attention.width[vectors];
  const Source& query = operands.query;
  const bool has_masks = head.mask != nullptr && operands.mask.query != 0;
  float* queries = scratch().columns.floats(static_cast<size_t>(size_ * height));
  float* scores =
      scratch().sums.floats(static_cast<size_t>(((has_masks ? 2 : 1) * keys + 2) * height));
  float *largest = scores + keys * height, *sums = largest + height, *masks = sums + height;

  simd.to_columns(head.query + first * query.row_stride, query.row_stride, count, size_, queries,
                  height);
  run.product(
      {head.key, operands.key.row_stride, 1, keys, size_, queries, scores, height, largest});
  if (has_masks)
    simd.to_columns(head.mask + first * operands.mask.query, operands.mask.query, count, keys,
                    masks, height);
  run.exponentials({scores, keys, height, scale_, largest, has_masks ? nullptr : head.mask,
                    has_masks ? masks : nullptr, nan_to_zero_, sums});

  float* out = queries;  // no longer needed
  run.product({head.values, 1, size_, size_, keys, scores, out, height, nullptr});
  simd.attention.divide_columns(out, size_, height, sums);
  const int64_t stride = operands.y.row_stride;
  const float infinity = std::numeric_limits<float>::infinity();
  simd.to_rows(out, height, count, size_, head.y + first * stride, nullptr, stride, -infinity,
               infinity);
}

}  // namespace mfac
