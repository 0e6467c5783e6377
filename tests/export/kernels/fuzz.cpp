// Random and hostile nodes, run under the sanitizers with an ONNX Runtime that is played here.
//
// Every tensor lies in an allocation of just its size, so that a read or a write beyond it is seen.
// A node may be refused, and must be without one of its attributes; what is not allowed is anything
// that the sanitizers report.
//     fuzz SECONDS [SEED]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.hpp"
#include "conv_ranges.hpp"
#include "packed_weights.hpp"

using namespace mfac::ort;

extern "C" Status* RegisterCustomOps(SessionOptions*, const ApiBase*);

namespace mfac::ort {
struct Status {};
struct Value {
  ElementType type;
  std::vector<int64_t> shape;
  std::unique_ptr<char[]> data;  // of just the right size
};
struct TensorInfo {
  const Value* value;
};
struct KernelInfo {
  bool quantised = false;
  bool floats = false;    // after the sums of a quantised node
  bool to_float = false;  // and in its output
  bool joined = false;    // a convolution with a depthwise one after it
  bool added = false;     // a quantised convolution with a residual
  bool pooled = false;    // one whose result is pooled
  bool norm = false;      // a layer norm; if it is quantised, its result is
  bool attention = false;
  std::map<std::string, std::vector<int64_t>> ints;
  std::map<std::string, std::string> words;
  std::vector<std::unique_ptr<Value>> inputs;  // null: not there
};
struct KernelContext {
  KernelInfo* node;
  std::unique_ptr<Value> output, second;
  bool has_second;
  size_t shared;  // the input whose memory the output may have; beyond the inputs: none
};
}  // namespace mfac::ort

namespace {

constexpr int64_t kLargestOutput = int64_t{1} << 22;
std::mt19937_64 generator;
std::vector<const CustomOp*> ops;
Status refused;

int64_t pick(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}
bool chance(double share) { return pick(0, 999) < share * 1000; }

int64_t count(const std::vector<int64_t>& shape) {
  int64_t all = 1;
  for (int64_t size : shape)
    all = size < 0 || all > kLargestOutput ? kLargestOutput + 1 : all * size;
  return all;
}

std::unique_ptr<Value> tensor(ElementType type, std::vector<int64_t> shape) {
  auto value = std::make_unique<Value>();
  value->type = type;
  const size_t size = type == kUint8 || type == kInt8 ? 1 : 4;
  value->data = std::make_unique<char[]>(static_cast<size_t>(count(shape)) * size);
  for (int64_t i = 0; size == 1 && i < count(shape); ++i)
    value->data[i] = static_cast<char>(pick(-128, 127));
  auto* numbers = reinterpret_cast<float*>(value->data.get());
  for (int64_t i = 0; type == kFloat && i < count(shape); ++i)
    numbers[i] = static_cast<float>(pick(-100, 100)) / 50;
  if (type == kFloat && count(shape) > 0 && chance(0.03))
    numbers[pick(0, count(shape) - 1)] = chance(0.5) ? __builtin_nanf("") : __builtin_inff();
  value->shape = std::move(shape);
  return value;
}

std::unique_ptr<Value> int_tensor(const std::vector<int32_t>& numbers) {
  auto value = tensor(kInt32, {static_cast<int64_t>(numbers.size())});
  if (!numbers.empty()) std::memcpy(value->data.get(), numbers.data(), numbers.size() * 4);
  return value;
}

// The function table, by position.
void* table[300];
template <class Function>
void set(int position, Function function) {
  table[position] = reinterpret_cast<void*>(+function);
}

void fill_table() {
  set(0, [](ErrorCode, const char*) -> Status* { return &refused; });
  set(26, [](const char*, CustomOpDomain** out) -> Status* {
    *out = reinterpret_cast<CustomOpDomain*>(&refused);
    return nullptr;
  });
  set(27, [](CustomOpDomain*, const void* op) -> Status* {
    ops.push_back(static_cast<const CustomOp*>(op));
    return nullptr;
  });
  set(28, [](SessionOptions*, CustomOpDomain*) -> Status* { return nullptr; });
  set(51, [](Value* value, void** out) -> Status* {
    *out = value->data.get();
    return nullptr;
  });
  set(60, [](const TensorInfo* info, ElementType* out) -> Status* {
    *out = info->value->type;
    return nullptr;
  });
  set(61, [](const TensorInfo* info, size_t* out) -> Status* {
    *out = info->value->shape.size();
    return nullptr;
  });
  set(62, [](const TensorInfo* info, int64_t* out, size_t size) -> Status* {
    for (size_t i = 0; i < size; ++i) out[i] = info->value->shape[i];
    return nullptr;
  });
  set(65, [](const Value* value, TensorInfo** out) -> Status* {
    *out = new TensorInfo{value};
    return nullptr;
  });
  set(85, [](const KernelInfo* node, const char* name, float* out) -> Status* {
    const auto found = node->ints.find(name);
    if (found == node->ints.end()) return &refused;
    *out = static_cast<float>(found->second[0]);
    return nullptr;
  });
  set(86, [](const KernelInfo* node, const char* name, int64_t* out) -> Status* {
    const auto found = node->ints.find(name);
    if (found == node->ints.end()) return &refused;
    *out = found->second[0];
    return nullptr;
  });
  set(87, [](const KernelInfo* node, const char* name, char* out, size_t* size) -> Status* {
    const auto found = node->words.find(name);
    if (found == node->words.end()) return &refused;
    if (out != nullptr) std::memcpy(out, found->second.c_str(), found->second.size() + 1);
    *size = found->second.size() + 1;
    return nullptr;
  });
  set(88, [](const KernelContext* call, size_t* out) -> Status* {
    *out = call->node->inputs.size();
    return nullptr;
  });
  set(90, [](const KernelContext* call, size_t index, const Value** out) -> Status* {
    *out = call->node->inputs[index].get();
    return nullptr;
  });
  set(91,
      [](KernelContext* call, size_t index, const int64_t* shape, size_t rank,
         Value** out) -> Status* {
        const std::vector<int64_t> all(shape, shape + rank);
        if (count(all) > kLargestOutput) return &refused;  // as if out of memory
        if (index > 0) {
          call->second = call->has_second ? tensor(kFloat, all) : nullptr;
          *out = call->second.get();
          return nullptr;
        }
        const auto& inputs = call->node->inputs;
        if (call->shared < inputs.size() && inputs[call->shared] &&
            inputs[call->shared]->shape == all && chance(0.5)) {
          *out = inputs[call->shared].get();
          return nullptr;
        }
        const bool bytes = call->node->quantised && !call->node->to_float;
        call->output = tensor(bytes ? kUint8 : kFloat, all);
        *out = call->output.get();
        return nullptr;
      });
  set(93, [](Status*) {});
  set(99, [](TensorInfo* info) { delete info; });
  set(163, [](const KernelInfo* node, const char* name, int64_t* out, size_t* size) -> Status* {
    const auto found = node->ints.find(name);
    if (found == node->ints.end()) return &refused;
    *size = found->second.size();
    if (out != nullptr) std::memcpy(out, found->second.data(), *size * sizeof(int64_t));
    return nullptr;
  });
  set(249, [](const KernelInfo* node, size_t index, int* constant, const Value** out) -> Status* {
    if (index >= node->inputs.size() || !node->inputs[index]) return &refused;
    *constant = 1;
    *out = node->inputs[index].get();
    return nullptr;
  });
  set(274,
      [](const KernelContext*, void (*task)(void*, size_t), size_t total, size_t,
         void* argument) -> Status* {
        for (size_t i = total; i > 0; --i) task(argument, i - 1);  // in any order
        return nullptr;
      });
}

// Replace a number by one that a file should not hold.
void spoil(int64_t& number) {
  static const int64_t bad[] = {0,
                                -1,
                                1,
                                2,
                                7,
                                255,
                                32768,
                                32769,
                                1 << 20,
                                INT32_MAX,
                                int64_t{1} << 31,
                                int64_t{1} << 40,
                                INT64_MAX,
                                INT64_MIN};
  number = bad[pick(0, std::size(bad) - 1)];
}
void spoil(int32_t& number) {
  int64_t wide = number;
  spoil(wide);
  number = chance(0.5) ? number + static_cast<int32_t>(pick(-2, 2)) : static_cast<int32_t>(wide);
}

struct Size {
  int64_t outputs, inputs, parts, block;
};

void add_weights(KernelInfo& node, const Size& size, bool hostile) {
  const int64_t groups = (size.outputs + size.block - 1) / size.block * size.parts;
  const double kept = std::vector<double>{0, 0.05, 0.3, 1}[pick(0, 3)];
  std::vector<int32_t> starts{0}, indices;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; i < size.inputs; ++i)
      if (chance(kept)) indices.push_back(static_cast<int32_t>(i));
    starts.push_back(static_cast<int32_t>(indices.size()));
  }
  int64_t stored = static_cast<int64_t>(indices.size());
  int64_t width = node.quantised ? 4 : size.block;
  if (hostile && chance(0.4) && !indices.empty()) {  // mostly a group's last, which may be large
    const int32_t last = starts[pick(1, starts.size() - 1)] - 1;
    spoil(indices[last >= 0 && chance(0.8) ? last : pick(0, stored - 1)]);
  }
  if (hostile && chance(0.3)) spoil(starts[pick(0, starts.size() - 1)]);
  if (hostile && chance(0.1)) starts.resize(pick(0, starts.size() + 2));
  if (hostile && chance(0.1)) indices.resize(pick(0, indices.size() + 2));
  if (hostile && chance(0.1)) stored = pick(0, stored + 2);
  if (hostile && chance(0.1)) width = pick(0, 17);
  node.inputs.push_back(tensor(node.quantised ? kInt8 : kFloat, {stored, width}));
  node.inputs.push_back(int_tensor(indices));
  node.inputs.push_back(int_tensor(starts));
  const int64_t biases = size.outputs * size.parts + (hostile && chance(0.1) ? pick(-1, 1) : 0);
  if (!node.quantised) {
    node.inputs.push_back(chance(0.5) ? tensor(kFloat, {biases}) : nullptr);
    return;
  }
  node.inputs.push_back(tensor(kFloat, {size.outputs * size.parts}));
  auto* scales = reinterpret_cast<float*>(node.inputs.back()->data.get());
  for (int64_t i = 0; i < size.outputs * size.parts && (!hostile || chance(0.9)); ++i)
    scales[i] = static_cast<float>(pick(0, 1000)) / 1000;
  if (node.floats) {
    node.inputs.push_back(chance(0.5) ? tensor(kFloat, {biases}) : nullptr);
    return;
  }
  std::vector<int32_t> bias(static_cast<size_t>(std::max<int64_t>(biases, 0)));
  for (int32_t& each : bias) each = static_cast<int32_t>(pick(-1000, 1000));
  if (hostile && chance(0.1) && !bias.empty()) spoil(bias[pick(0, bias.size() - 1)]);
  node.inputs.push_back(chance(0.5) ? int_tensor(bias) : nullptr);
}

// Zero weights of inputs that the last quad has and the layer has not.
void clear_beyond(KernelInfo& node, int64_t channels, int64_t taps) {
  const Value& indices = *node.inputs[2];
  auto* values = node.inputs[1]->data.get();
  const int64_t stored = std::min(indices.shape[0], node.inputs[1]->shape[0]);
  for (int64_t i = 0; i < stored && node.inputs[1]->shape[1] == 4; ++i) {
    const int64_t quad = reinterpret_cast<const int32_t*>(indices.data.get())[i] / taps;
    for (int64_t q = 0; q < 4; ++q)
      if (quad * 4 + q >= channels) values[i * 4 + q] = 0;
  }
}

// Zero weights of outputs that the last block has and the layer has not.
void clear_beyond_outputs(KernelInfo& node, const Size& size) {
  const Value& starts = *node.inputs[3];
  auto* values = node.inputs[1]->data.get();
  const int64_t stored = node.inputs[1]->shape[0];
  const int64_t groups = (size.outputs + 3) / 4;
  const auto start = [&](int64_t group) {
    return std::clamp<int64_t>(reinterpret_cast<const int32_t*>(starts.data.get())[group], 0,
                               stored);
  };
  for (int64_t group = 0; group + 1 < starts.shape[0] && node.inputs[1]->shape[1] == 4; ++group)
    for (int64_t i = start(group); i < start(group + 1); ++i)
      for (int64_t o = 0; o < 4; ++o)
        if (group % groups * 4 + o >= size.outputs) values[i * 4 + o] = 0;
}

void add_activation(KernelInfo& node, const std::string& prefix) {
  std::string& name = node.words[prefix + "activation"];
  name = std::vector<std::string>{"none", "relu", "clip", "gelu", "gelu_tanh"}[pick(0, 4)];
  if (name != "clip") return;
  node.ints[prefix + "min"] = {-1};
  node.ints[prefix + "max"] = {1};
}

void add_pool(KernelInfo& node) {
  node.pooled = true;
  const std::vector<int64_t> kernel = {pick(1, 4), pick(1, 4)};
  node.ints["pool_kernel_shape"] = kernel;
  node.ints["pool_strides"] = {pick(1, 3), pick(1, 3)};
  std::vector<int64_t> pads;
  for (int side = 0; side < 4; ++side) pads.push_back(pick(0, kernel[side % 2] - 1));
  node.ints["pool_pads"] = pads;
}

void add_residual(KernelInfo& node, const std::vector<int64_t>& shape) {
  node.added = true;
  node.ints["add_factor"] = {pick(0, 32767)};
  node.ints["add_residual_factor"] = {pick(0, 32767)};
  node.ints["add_offset"] = {pick(-(1 << 30), 1 << 30)};
  node.ints["add_shift"] = {pick(0, 31)};
  node.ints["add_min"] = {pick(0, 100)};
  node.ints["add_max"] = {pick(100, 255)};
  node.inputs.push_back(tensor(kUint8, shape));
}

void add_common(KernelInfo& node, int64_t block) {
  if (node.quantised) {
    if (block == 4) node.ints["block"] = {block};
    node.ints["x_zero_point"] = {pick(0, 255)};
    if (!node.to_float) node.ints["y_zero_point"] = {pick(0, 255)};
    if (!node.floats) {
      node.ints["min"] = {pick(0, 100)};
      node.ints["max"] = {pick(100, 255)};
      return;
    }
    if (!node.to_float) node.ints["y_scale"] = {pick(1, 100)};
  } else {
    node.ints["block"] = {block};
  }
  add_activation(node, "");
}

// Take one attribute away; one of another type looks the same to whoever asks for it. (A quantised
// node without a block is a node in quads.)
void lose_attribute(KernelInfo& node) {
  const int64_t at = pick(0, node.ints.size() + node.words.size() - 1);
  const int64_t ints = node.ints.size();
  if (at < ints && node.quantised && std::next(node.ints.begin(), at)->first == "block")
    node.ints.erase("x_zero_point");
  else if (at < ints)
    node.ints.erase(std::next(node.ints.begin(), at));
  else
    node.words.erase(std::next(node.words.begin(), at - ints));
}

int64_t any_block() { return std::vector<int64_t>{1, 4, 8, 16}[pick(0, 3)]; }

void make_linear(KernelInfo& node, bool hostile) {
  const int64_t inputs = pick(1, chance(0.1) ? 3000 : 60);
  const bool quads = node.quantised && chance(0.4);
  const Size size{pick(1, 40), quads ? (inputs + 3) / 4 : inputs, 1,
                  quads ? 1 : node.quantised ? 4 : any_block()};
  node.ints["out_features"] = {size.outputs};
  node.ints["in_features"] = {inputs};
  const int64_t rows = chance(0.5) ? pick(0, 4) : pick(0, 140);
  node.inputs.push_back(tensor(node.quantised ? kUint8 : kFloat, {rows, inputs}));
  add_weights(node, size, hostile);
  add_common(node, size.block);
  if (quads) clear_beyond(node, inputs, 1);
  if (node.quantised && !quads) clear_beyond_outputs(node, size);
  if ((node.to_float || !node.quantised) && chance(0.5)) node.inputs.push_back(tensor(kFloat, {rows, size.outputs}));
}

std::vector<int64_t> image_shape(bool planes, const std::vector<int64_t>& s, bool line) {
  if (!planes && line) return {s[0], s[1], s[3]};
  if (!planes) return s;
  const bool aligned = s[3] == 8 || s[3] == 16 || s[3] == 32;
  const int64_t row = s[3] + (aligned ? 8 : 1);
  const int64_t plane = (s[2] + 2) * row;
  const int64_t all = s[0] * s[1] + (32 + plane - 1) / plane;
  if (aligned) return {all, s[2] + 2, row / 8, 8};
  return {all, s[2] + 2, row};
}

// The depthwise convolution after a convolution of images in nchw.
void join_depthwise(KernelInfo& node, int64_t channels, bool hostile) {
  const int64_t size = chance(0.7) ? 3 : 5;
  const int64_t stride = pick(1, 2);
  std::vector<int64_t> shape{channels, 1, size, size};
  if (hostile && chance(0.1)) shape[pick(0, 3)] = pick(0, 6);
  if (hostile && chance(0.05)) shape.pop_back();
  node.inputs.push_back(tensor(kFloat, shape));
  if (chance(0.5))
    node.inputs.push_back(tensor(kFloat, {channels + (hostile && chance(0.1) ? pick(-1, 1) : 0)}));
  node.ints["depthwise_strides"] = {stride, stride};
  node.ints["depthwise_pads"] = {pick(0, 2), pick(0, 2), pick(0, 2), pick(0, 2)};
  add_activation(node, "depthwise_");
}

void make_conv(KernelInfo& node, bool hostile) {
  const int64_t parts = chance(0.7) ? 1 : pick(2, 4);
  const bool usual = chance(0.6);  // a 3x3 window with a border of 1, or a 1x1 window
  const int64_t border = pick(0, 1);
  const bool line = chance(0.3);  // along one axis: images of one row
  auto pair = [&](int64_t least, int64_t most, int64_t otherwise) {
    return usual ? std::vector<int64_t>{otherwise, otherwise}
                 : std::vector<int64_t>{pick(least, most), pick(least, most)};
  };
  std::vector<int64_t> kernel = pair(1, 5, 1 + 2 * border), strides = pair(1, 4, 1);
  std::vector<int64_t> dilations = pair(1, 3, 1);
  std::vector<int64_t> pads(4, border);
  for (int64_t& pad : pads) pad = usual ? border : pick(0, 4);
  if (line) kernel[0] = strides[0] = dilations[0] = 1, pads[0] = pads[2] = 0;
  auto of_axes = [line](const std::vector<int64_t>& both) {
    return line ? std::vector<int64_t>{both[1]} : both;
  };
  const bool depthwise = !line && chance(0.3);
  if (depthwise) {
    kernel[0] = kernel[1] = chance(0.7) ? 3 : 5;
    strides[0] = strides[1] = pick(1, 2);
    dilations[0] = dilations[1] = 1;
  }
  const int64_t channels = depthwise ? 1 : pick(1, 9);
  const int64_t taps = kernel[0] * kernel[1];
  const bool quads = node.quantised && chance(0.4);
  const Size size{depthwise ? 1 : pick(1, 12), (quads ? (channels + 3) / 4 : channels) * taps, parts,
                  quads ? 1 : node.quantised ? 4 : any_block()};
  node.ints = {{"kernel_shape", of_axes(kernel)},
               {"strides", of_axes(strides)},
               {"dilations", of_axes(dilations)},
               {"pads", line ? std::vector<int64_t>{pads[1], pads[3]} : pads},
               {"group", {parts}},
               {"in_channels", {channels * parts}},
               {"out_channels", {size.outputs * parts}}};
  const auto output_of = [&](const std::vector<int64_t>& x) {
    std::vector<int64_t> y = {x[0], size.outputs * parts};
    for (int i = 0; i < 2; ++i)
      y.push_back(
          (x[i + 2] + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) / strides[i] + 1);
    return y;
  };
  if (node.quantised) {
    const std::vector<int64_t> x = {pick(0, chance(0.1) ? 10 : 3), channels * parts,
                                    line ? 1 : pick(1, 20), pick(1, 40)};
    node.inputs.push_back(tensor(kUint8, image_shape(false, x, line)));
    add_weights(node, size, hostile);
    add_common(node, size.block);
    const std::vector<int64_t> y = output_of(x);
    const bool goes_on = !quads && y[2] > 0 && y[3] > 0 && chance(0.6);
    if (goes_on && chance(0.6))
      add_residual(node, image_shape(false, y, line));
    else if (goes_on && !line)
      add_pool(node);
    return quads ? clear_beyond(node, channels, taps) : clear_beyond_outputs(node, size);
  }
  node.joined = parts == 1 && !line && !depthwise && chance(0.4);
  if (node.joined) {
    node.inputs.push_back(
        tensor(kFloat, {pick(0, 3), channels, pick(1, 20), chance(0.2) ? pick(40, 70) : pick(1, 20)}));
    add_weights(node, size, hostile);
    add_common(node, size.block);
    return join_depthwise(node, size.outputs, hostile);
  }
  const double planes = depthwise ? 0.1 : 0.5;
  const bool x_planes = chance(planes), y_planes = chance(planes), r_planes = chance(planes);
  node.words["input_layout"] = x_planes ? "planes" : "nchw";
  node.words["output_layout"] = y_planes ? "planes" : "nchw";
  node.words["residual_layout"] = r_planes ? "planes" : "nchw";
  const std::vector<int64_t> x = {pick(0, chance(0.1) ? 10 : 3), channels * parts,
                                  line ? 1 : pick(1, 20),
                                  chance(0.4) ? int64_t{8} << pick(0, 2) : pick(1, 20)};
  node.inputs.push_back(tensor(kFloat, image_shape(x_planes, x, line)));
  if (x_planes) {  // nothing was seen that is not finite
    Value& value = *node.inputs[0];
    int64_t end = x[0] * x[1];
    for (size_t i = 1; i < value.shape.size(); ++i) end *= value.shape[i];
    end += 31;
    reinterpret_cast<float*>(value.data.get())[end] = chance(0.1);
  }
  add_weights(node, size, hostile);
  add_common(node, size.block);
  const std::vector<int64_t> y = output_of(x);
  if (chance(0.5) && y[2] > 0 && y[3] > 0)
    node.inputs.push_back(tensor(kFloat, image_shape(r_planes, y, line)));
}

void make_norm(KernelInfo& node, bool hostile) {
  node.norm = true;
  node.floats = node.to_float = false;
  const int64_t width = pick(1, chance(0.1) ? 3000 : 70);
  std::vector<int64_t> shape(pick(1, 3), pick(0, 4));
  shape.back() = width;
  node.inputs.push_back(tensor(kFloat, shape));
  const auto constant = [&] {
    const int64_t size = hostile && chance(0.1) ? pick(0, 40) : width;
    return tensor(kFloat, hostile && chance(0.05) ? std::vector<int64_t>{1, size}
                                                  : std::vector<int64_t>{size});
  };
  node.inputs.push_back(constant());
  node.inputs.push_back(chance(0.7) ? constant() : nullptr);
  node.ints["epsilon"] = {pick(1, 3)};
  if (!node.quantised) return;
  node.ints["y_scale"] = {pick(1, 100)};
  node.ints["y_zero_point"] = {pick(0, 255)};
}

// Rows of one of the inputs of attention, in the order of the attribute length_first.
std::vector<int64_t> rows_of(const KernelInfo& node, int64_t batch, int64_t length, int64_t width) {
  if (node.ints.at("length_first")[0] != 0) return {length, batch, width};
  return {batch, length, width};
}

void make_attention(KernelInfo& node, bool hostile) {
  node.attention = true;
  const int64_t heads = pick(1, 5), size = chance(0.1) ? pick(1, 140) : pick(1, 20);
  const int64_t batch = pick(0, chance(0.1) ? 5 : 2);
  const int64_t queries = chance(0.2) ? pick(0, 2) : pick(1, 140);
  const int64_t lengths[] = {queries, pick(0, chance(0.5) ? 5 : 140)};
  node.ints["num_heads"] = {heads};
  node.ints["head_size"] = {size};
  node.ints["scale"] = {pick(1, 3)};
  node.ints["nan_to_zero"] = {pick(0, 1)};
  node.ints["length_first"] = {pick(0, 1)};
  const char* const offsets[] = {"query_offset", "key_offset", "value_offset"};
  for (int place = 0; place < 3; ++place) {
    const int64_t offset = chance(0.5) ? 0 : pick(0, 9);
    const int64_t behind = (chance(0.5) ? 0 : pick(0, 9)) - (hostile && chance(0.1) ? 1 : 0);
    const int64_t width = offset + heads * size + behind;
    node.ints[offsets[place]] = {offset};
    auto shape = rows_of(node, batch, lengths[place > 0], width);
    if (hostile && chance(0.1)) shape[pick(0, 2)] = pick(0, 40);
    if (hostile && chance(0.03)) shape.pop_back();
    node.inputs.push_back(hostile && chance(0.02) ? nullptr : tensor(kFloat, shape));
  }
  if (chance(0.4)) return;
  std::vector<int64_t> mask{batch, heads, lengths[0], lengths[1]};
  for (int axis = 0; axis < 3; ++axis)
    if (chance(0.5)) mask[axis] = 1;
  if (hostile && chance(0.2)) mask[pick(0, 3)] = pick(0, 40);
  mask.erase(mask.begin(), mask.begin() + (mask[0] == 1 ? pick(0, 1) : 0));
  node.inputs.push_back(tensor(kFloat, mask));
}

// Create and run one node. Tells whether it was run to its end.
bool run(const CustomOp& op, const Api* api, KernelInfo& node) {
  void* kernel = nullptr;
  if (op.create_kernel_v2(&op, api, &node, &kernel) != nullptr) return false;
  int *inputs = nullptr, *outputs = nullptr;
  const bool shares = op.may_share(&inputs, &outputs) > 0;
  const size_t shared = shares ? static_cast<size_t>(inputs[0]) : SIZE_MAX;
  KernelContext call{&node, nullptr, nullptr, chance(0.5), shared};
  op.release_may_share(inputs, outputs);
  bool good = true;
  for (int again = 0; again < 2; ++again) good = op.compute_v2(kernel, &call) == nullptr && good;
  op.destroy(kernel);
  return good;
}

}  // namespace

// More inputs than an input tensor of a test could have.
bool far_offsets_are_right() {
  mfac::PackedWeights weights;
  weights.outputs = weights.groups = 1;
  weights.inputs = int64_t{1} << 26;
  weights.starts = {0, 2};
  weights.indices = {5, (1 << 26) - 3};
  weights.values = {1, 2};
  const int64_t rows = 64, step = rows * 4;
  const mfac::RangedWeights ranged = mfac::by_columns(weights, rows, 1 << 16);
  const auto input_of = [&](float value) {
    const int64_t place =
        std::find(ranged.values.begin(), ranged.values.end(), value) - ranged.values.begin();
    int64_t range = 0;
    while (ranged.starts[range * 2 + 1] <= place) ++range;
    return range * ranged.width + ranged.indices[place] / step;
  };
  return input_of(1) == 5 && input_of(2) == (1 << 26) - 3;
}

// More channels than offsets could address if all were in one range.
bool ranges_are_addressable() {
  mfac::PackedWeights weights;
  weights.outputs = weights.groups = 1;
  weights.inputs = 4096;
  weights.indices = {1, 4095};
  mfac::Window window{};
  for (int axis = 0; axis < 2; ++axis)
    window.kernel[axis] = window.strides[axis] = window.dilations[axis] = 1;
  mfac::Runs runs;
  runs.by_tile = true;
  runs.channel_stride = int64_t{1} << 20;
  const int64_t channels = mfac::channels_in_range(weights, window, runs, 64, 48);
  return channels >= 1 && channels * runs.channel_stride * 4 < (int64_t{1} << 31);
}

int main(int argc, char** argv) {
  if (!far_offsets_are_right() || !ranges_are_addressable()) return 3;
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  generator.seed(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  fill_table();
  const Api* api = reinterpret_cast<const Api*>(table);
  static const Api* given = api;
  const ApiBase base{[](uint32_t) { return given; }, [] { return "fuzz"; }};
  RegisterCustomOps(nullptr, &base);
  if (ops.size() != 12) return 2;

  const auto start = std::chrono::steady_clock::now();
  int64_t nodes = 0, finished = 0, broken = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
         seconds) {
    const bool hostile = chance(0.5);
    const bool attention = chance(0.2);
    const bool linear = chance(0.4);
    KernelInfo node;
    node.quantised = !attention && chance(0.5);
    node.floats = node.quantised && linear && chance(0.6);
    node.to_float = node.floats && chance(0.5);
    if (chance(0.1))
      make_norm(node, hostile);
    else
      attention ? make_attention(node, hostile)
      : linear  ? make_linear(node, hostile)
                : make_conv(node, hostile);
    if (hostile && chance(0.4)) {
      auto at = std::next(node.ints.begin(), pick(0, node.ints.size() - 1));
      spoil(at->second[pick(0, at->second.size() - 1)]);
    }
    const bool lacking = hostile && chance(0.1);
    if (lacking) lose_attribute(node);
    if (hostile && chance(0.2) && node.inputs[0] && !node.inputs[0]->shape.empty()) {
      auto shape = node.inputs[0]->shape;
      shape[pick(0, shape.size() - 1)] = pick(0, 40);
      if (count(shape) <= kLargestOutput) node.inputs[0] = tensor(node.inputs[0]->type, shape);
    }
    // In a thread of its own, so that working memory is not larger than this node needs.
    bool good = false;
    std::thread([&] {
      const int floats = node.to_float ? 4 : 5;
      const int plain = (linear ? 0 : 1) + (node.quantised ? 2 : 0);
      const int after = node.added ? 7 : 8;
      const int norm = node.quantised ? 11 : 10;
      const int sparse =
          node.added || node.pooled ? after : node.joined ? 6 : node.floats ? floats : plain;
      const int op = node.norm ? norm : node.attention ? 9 : sparse;
      good = run(*ops[op], api, node);
    }).join();
    if (good && lacking) {
      std::fprintf(stderr, "a node without one of its attributes was run\n");
      return 4;
    }
    ++nodes;
    finished += good;
    broken += !good && !hostile;
  }
  std::printf("%lld nodes, %lld of them run\n", static_cast<long long>(nodes),
              static_cast<long long>(finished));
  // Refusing what is sound would hide what is not looked at. Windows larger than their input are.
  return finished * 3 > nodes && broken * 2 < nodes ? 0 : 3;
}
