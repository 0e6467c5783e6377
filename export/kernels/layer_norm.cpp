#include "layer_norm.hpp"

#include <cmath>

#include "conv_shares.hpp"
#include "quantised_weights.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

enum NormInput : size_t { kNormX, kNormScale, kNormBias };

// X's rows; the caller adds where the results go.
NormRows read_rows(const Call& call, const NormParameters& norm, Shape* shape) {
  const int64_t width = static_cast<int64_t>(norm.scale.size());
  const Tensor x = call.input(kNormX);
  require(x && x.shape.rank >= 1 && x.shape.dims[x.shape.rank - 1] == width, "X must be [..., ",
          width, "]. Got ", x.shape);
  require(norm.has_bias || !call.input(kNormBias), "bias must be a constant initializer");
  *shape = x.shape;
  NormRows rows{};
  rows.x = x.floats();
  rows.rows = element_count(x.shape) / width;
  rows.count = width;
  rows.scale = norm.scale.data();
  rows.bias = norm.bias.data();
  rows.epsilon = norm.epsilon;
  return rows;
}

void normalise(const Call& call, const NormRows& all) {
  if (all.rows == 0) return;
  const int64_t bytes = all.rows * all.count * static_cast<int64_t>(sizeof(float));
  in_parts(&call, all.rows, bytes, [&](int64_t first, int64_t end) {
    NormRows some = all;
    some.rows = end - first;
    some.x += first * all.count;
    if (all.y) some.y += first * all.count;
    if (all.bytes) some.bytes += first * all.count;
    simd_kernels().layer_norm(some);
  });
}

// Divide by the step of the result, in float32, like the file's own scales.
void divide(std::vector<float>& values, float step, const char* name) {
  for (float& value : values) {
    value /= step;
    require(std::isfinite(value), name, " divided by y_scale must be finite");
  }
}

}  // namespace

NormParameters::NormParameters(const NodeInfo& node) {
  const Tensor factors = node.constant(kNormScale, "scale", ort::kFloat, false);
  require(factors.shape.rank == 1 && factors.shape.dims[0] > 0,
          "scale must have one dimension, and at least one number. Got ", factors.shape);
  scale.assign(factors.floats(), factors.floats() + factors.shape.dims[0]);
  const Tensor offsets = node.constant(kNormBias, "bias", ort::kFloat, true);
  has_bias = static_cast<bool>(offsets);
  require(!has_bias || offsets.shape == factors.shape, "bias must have the shape of scale, ",
          factors.shape, ". Got ", offsets.shape);
  if (has_bias)
    bias.assign(offsets.floats(), offsets.floats() + scale.size());
  else
    bias.resize(scale.size());
  epsilon = node.real("epsilon");
  require(std::isfinite(epsilon) && epsilon > 0, "epsilon must be finite and positive");
}

void LayerNorm::run(const Call& call) const {
  Shape shape;
  NormRows rows = read_rows(call, norm_, &shape);
  rows.y = call.output(shape);
  normalise(call, rows);
}

LayerNormQuantize::LayerNormQuantize(const NodeInfo& node)
    : norm_(node), step_(node.real("y_scale")) {
  require(std::isfinite(step_) && step_ > 0, "y_scale must be finite and positive");
  divide(norm_.scale, step_, "scale");
  divide(norm_.bias, step_, "bias");
  const int zero_point = read_byte(node, "y_zero_point");
  rounding_.zero_point = zero_point;
  rounding_.low = static_cast<float>(-zero_point);
  rounding_.high = static_cast<float>(255 - zero_point);
}

void LayerNormQuantize::run(const Call& call) const {
  Shape shape;
  NormRows rows = read_rows(call, norm_, &shape);
  rows.bytes = call.output_bytes(shape);
  rows.y = call.second_output(shape);
  rows.how = rounding_;
  rows.step = step_;
  normalise(call, rows);
}

}  // namespace mfac
