#include "linear_output.hpp"

#include <algorithm>
#include <cmath>

#include "scratch.hpp"
#include "simd.hpp"

namespace mfac {
namespace {

// Larger ones could leave float32 when they are multiplied with a sum, or added.
constexpr float kLargestScale = 1e28f;
constexpr float kLargestBias = 1e38f;

}  // namespace

LinearOutput::LinearOutput(const NodeInfo& node, SumsKind kind, const QuantisedWeights& weights)
    : kind_(kind), outputs_(weights.blocks.outputs), has_bias_(weights.blocks.has_bias) {
  if (!in_floats()) return;
  scales_ = weights.scales;
  for (float scale : scales_)
    require(scale <= kLargestScale, "scales must be at most 1e28, or sums could leave float32");
  bias_.resize(scales_.size());
  const Tensor bias = node.constant(kSumBias, "bias", ort::kFloat, true);
  has_bias_ = static_cast<bool>(bias);
  if (bias) {
    require(bias.shape.rank == 1 && bias.shape.dims[0] == outputs_,
            "bias must have one number an output. Got ", bias.shape);
    std::copy_n(bias.floats(), outputs_, bias_.begin());
    for (float each : bias_)
      require(std::abs(each) <= kLargestBias, "bias must be finite, and at most 1e38");
  }
  activation_ = read_activation(node);
  if (kind_ == SumsKind::kToFloat) return;
  y_scale_ = node.real("y_scale");
  require(std::isfinite(y_scale_) && y_scale_ > 0, "y_scale must be finite and positive");
  const int zero_point = read_byte(node, "y_zero_point");
  rounding_.zero_point = zero_point;
  rounding_.low = std::clamp<float>(activation_.low / y_scale_, -zero_point, 255 - zero_point);
  rounding_.high = std::clamp<float>(activation_.high / y_scale_, -zero_point, 255 - zero_point);
}

LinearRows LinearOutput::open(const Call& call, int64_t inputs) const {
  const Tensor x = call.input(kX, ort::kUint8);
  require(x && x.shape.rank >= 1 && x.shape.dims[x.shape.rank - 1] == inputs, "X must be [..., ",
          inputs, "]. Got ", x.shape);
  require(has_bias_ || !call.input(kSumBias, in_floats() ? ort::kFloat : ort::kInt32),
          "bias must be a constant initializer");
  Shape shape = x.shape;
  shape.dims[shape.rank - 1] = outputs_;
  LinearRows rows;
  rows.x = x.bytes();
  if (kind_ == SumsKind::kToFloat) {
    const Tensor residual = call.input(kSumResidual);
    require(!residual || residual.shape == shape, "residual must have the output's shape ", shape,
            ". Got ", residual.shape);
    rows.residual = residual ? residual.floats() : nullptr;
    rows.floats = call.output(shape);
  } else {
    rows.bytes = call.output_bytes(shape);
  }
  rows.count = element_count(shape) == 0 ? 0 : element_count(x.shape) / inputs;
  return rows;
}

void LinearOutput::finish_columns(int32_t* sums, int64_t height, int64_t row, int64_t count,
                                  int64_t output, int64_t outputs, const LinearRows& rows) const {
  const SimdKernels& simd = simd_kernels();
  float* columns = reinterpret_cast<float*>(sums);
  for (int64_t o = 0; o < outputs; ++o)
    simd.scale_sums(sums + o * height, height, scales_[output + o], bias_[output + o],
                    columns + o * height);
  if (kind_ == SumsKind::kViaFloat) {
    const int64_t all = outputs * height;
    uint8_t* bytes = scratch().outputs.bytes(static_cast<size_t>(all));
    activation_.apply_gelu(columns, all);
    simd.quantise(columns, all, y_scale_, rounding_, bytes);
    simd.bytes.transpose(bytes, height, outputs, count, rows.bytes + row * outputs_ + output,
                         outputs_);
    return;
  }
  const int64_t at = row * outputs_ + output;
  activation_.to_rows(columns, height, count, outputs, rows.floats + at,
                      rows.residual ? rows.residual + at : nullptr, outputs_, activation_.low,
                      activation_.high);
}

void LinearOutput::finish_row(int32_t* sums, int64_t row, int64_t output, int64_t outputs,
                              const LinearRows& rows) const {
  const SimdKernels& simd = simd_kernels();
  const int64_t at = row * outputs_ + output;
  float* z = reinterpret_cast<float*>(sums);
  simd.scale_row(sums, scales_.data() + output, bias_.data() + output, outputs, z);
  if (kind_ == SumsKind::kViaFloat) {
    activation_.apply_gelu(z, outputs);
    simd.quantise(z, outputs, y_scale_, rounding_, rows.bytes + at);
    return;
  }
  const float* residual = rows.residual ? rows.residual + at : nullptr;
  simd.clip_rows({z, outputs, residual, outputs, rows.floats + at, outputs, 1, outputs, 0,
                  activation_.low, activation_.high});
  activation_.apply_gelu(rows.floats + at, outputs);
}

}  // namespace mfac
