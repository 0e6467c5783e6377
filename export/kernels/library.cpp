// Entry point: ONNX Runtime calls RegisterCustomOps.
#include <initializer_list>

#include "conv.hpp"
#include "conv_then_depthwise.hpp"
#include "layer_norm.hpp"
#include "linear.hpp"
#include "ort.hpp"
#include "quantised.hpp"

#define MFAC_EXPORT extern "C" __attribute__((visibility("default")))

namespace mfac {
namespace {

template <class Op>
struct Kernel {
  const ort::Api& api;
  const Op op;
};

template <class Op>
ort::Status* create(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                    void** kernel) {
  return guarded(*api, [&] { *kernel = new Kernel<Op>{*api, Op(NodeInfo(*api, info))}; });
}

template <class Op>
ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const auto& made = *static_cast<const Kernel<Op>*>(kernel);
  return guarded(made.api, [&] { made.op.run(Call(made.api, context)); });
}

// A second output is optional, and of floats.
template <class Op>
constexpr size_t kOutputs = 1;
template <>
constexpr size_t kOutputs<LayerNormQuantize> = 2;

template <class Op>
ort::CustomOp describe() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.name = [](const ort::CustomOp*) { return Op::kName; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // CPU
  op.input_type = [](const ort::CustomOp*, size_t index) { return Op::kTypes[index]; };
  op.input_type_count = [](const ort::CustomOp*) { return Op::kTypes.size(); };
  op.output_type = [](const ort::CustomOp*, size_t index) {
    return index == 0 ? Op::kOutput : ort::kFloat;
  };
  op.output_type_count = [](const ort::CustomOp*) { return kOutputs<Op>; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
  op.input_characteristic = [](const ort::CustomOp*, size_t index) {
    return index >= Op::kFirstOptional ? ort::kOptional : ort::kRequired;
  };
  op.output_characteristic = [](const ort::CustomOp*, size_t index) {
    return index == 0 ? ort::kRequired : ort::kOptional;
  };
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.variadic_input_min = [](const ort::CustomOp*) { return 0; };
  op.variadic_input_homogeneous = [](const ort::CustomOp*) { return 0; };
  op.variadic_output_min = [](const ort::CustomOp*) { return 0; };
  op.variadic_output_homogeneous = [](const ort::CustomOp*) { return 0; };
  op.create_kernel_v2 = create<Op>;
  op.compute_v2 = compute<Op>;
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  op.may_share = [](int** inputs, int** outputs) {
    static int residual = kResidual, output = 0;  // of the only pair
    *inputs = &residual;
    *outputs = &output;
    return Op::kInResidual ? size_t{1} : size_t{0};
  };
  op.release_may_share = [](int*, int*) {};
  op.aliases = [](int**, int**) { return size_t{0}; };
  op.release_aliases = [](int*, int*) {};
  return op;
}

// Null if ONNX Runtime returns an error.
ort::CustomOpDomain* make_domain(const ort::Api& api,
                                 std::initializer_list<const ort::CustomOp*> ops) {
  ort::CustomOpDomain* domain = nullptr;
  ort::Status* status = api.create_domain("mfac_compress", &domain);
  for (const ort::CustomOp* op : ops)
    if (status == nullptr) status = api.add_to_domain(domain, op);
  if (status == nullptr) return domain;
  api.release_status(status);
  return nullptr;
}

}  // namespace
}  // namespace mfac

MFAC_EXPORT mfac::ort::Status* RegisterCustomOps(mfac::ort::SessionOptions* options,
                                                 const mfac::ort::ApiBase* base) {
  using namespace mfac;
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (api == nullptr)
    return base->get_api(1)->create_status(ort::kFail, "mfac_compress needs ONNX Runtime >= 1.18");
  // Created once: sessions refer to the domain for their lifetime, so it is never released.
  static const ort::CustomOp linear = describe<Linear>();
  static const ort::CustomOp conv = describe<Conv>();
  static const ort::CustomOp conv_depthwise = describe<ConvDepthwise>();
  static const ort::CustomOp quantised_linear = describe<QuantisedLinear>();
  static const ort::CustomOp quantised_conv = describe<QuantisedConv>();
  static const ort::CustomOp quantised_conv_add = describe<QuantisedConvAdd>();
  static const ort::CustomOp conv_max_pool = describe<ConvMaxPool>();
  static const ort::CustomOp to_float = describe<LinearToFloat>();
  static const ort::CustomOp via_float = describe<LinearViaFloat>();
  static const ort::CustomOp layer_norm = describe<LayerNorm>();
  static const ort::CustomOp layer_norm_quantize = describe<LayerNormQuantize>();
  static ort::CustomOpDomain* const domain =
      make_domain(*api, {&linear, &conv, &quantised_linear, &quantised_conv, &to_float, &via_float,
                         &conv_depthwise, &quantised_conv_add, &conv_max_pool, &layer_norm,
                         &layer_norm_quantize});
  if (domain == nullptr) return api->create_status(ort::kFail, "mfac_compress: no domain");
  return api->add_domain(options, domain);
}
