#include "ort.hpp"

#include <limits>
#include <memory>

namespace mfac {
namespace {

// Whether a call succeeded; its status is released.
bool succeeded(const ort::Api& api, ort::Status* status) {
  if (status == nullptr) return true;
  api.release_status(status);
  return false;
}

void must(const ort::Api& api, ort::Status* status, const char* doing) {
  require(succeeded(api, status), "ONNX Runtime could not ", doing);
}

struct InfoRelease {
  const ort::Api* api;
  void operator()(ort::TensorInfo* info) const { api->release_tensor_info(info); }
};

Tensor view(const ort::Api& api, const ort::Value* value, ort::ElementType type) {
  Tensor tensor;
  ort::TensorInfo* raw = nullptr;
  must(api, api.tensor_info(value, &raw), "describe a tensor");
  std::unique_ptr<ort::TensorInfo, InfoRelease> info(raw, InfoRelease{&api});
  ort::ElementType found = ort::kUndefined;
  must(api, api.element_type(info.get(), &found), "read a tensor's type");
  require(found == type, "the tensor has element type ", int64_t{found}, ", not ", int64_t{type});
  must(api, api.rank(info.get(), &tensor.shape.rank), "read a tensor's rank");
  require(tensor.shape.rank <= kMaxRank, "tensors must have at most 8 dimensions");
  must(api, api.dimensions(info.get(), tensor.shape.dims, tensor.shape.rank), "read a shape");
  void* data = nullptr;
  must(api, api.tensor_data(const_cast<ort::Value*>(value), &data), "give a tensor's data");
  static const float nothing = 0;  // an empty tensor is present, even if its address is null
  tensor.data = data != nullptr ? data : &nothing;
  return tensor;
}

}  // namespace

bool Shape::operator==(const Shape& other) const {
  if (rank != other.rank) return false;
  for (size_t i = 0; i < rank; ++i)
    if (dims[i] != other.dims[i]) return false;
  return true;
}

std::string text(const Shape& shape) {
  std::string all = "[";
  for (size_t i = 0; i < shape.rank; ++i) all += (i ? ", " : "") + std::to_string(shape.dims[i]);
  return all + "]";
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (size_t i = 0; i < shape.rank; ++i)
    require(shape.dims[i] >= 0 && !__builtin_mul_overflow(count, shape.dims[i], &count),
            "the shape ", shape, " is too large");
  return count;
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  require(succeeded(api_, api_.int_attribute(info_, name, &value)), name,
          " must be given, as an integer");
  return value;
}

bool NodeInfo::has(const char* name) const {
  int64_t whole = 0;
  float real = 0;
  size_t size = 0;
  return succeeded(api_, api_.int_attribute(info_, name, &whole)) ||
         succeeded(api_, api_.float_attribute(info_, name, &real)) ||
         succeeded(api_, api_.string_attribute(info_, name, nullptr, &size)) ||
         succeeded(api_, api_.ints_attribute(info_, name, nullptr, &size));
}

float NodeInfo::real(const char* name) const {
  float value = 0;
  require(succeeded(api_, api_.float_attribute(info_, name, &value)), name,
          " must be given, as a float");
  return value;
}

std::string NodeInfo::word(const char* name) const {
  char buffer[32] = {};
  size_t size = sizeof(buffer);  // including the terminating zero
  size_t needed = 0;
  require(succeeded(api_, api_.string_attribute(info_, name, nullptr, &needed)), name,
          " must be given, as a string");
  require(needed <= size, name, " is longer than any value that it may have");
  must(api_, api_.string_attribute(info_, name, buffer, &size), "read an attribute");
  buffer[sizeof(buffer) - 1] = 0;
  return buffer;
}

std::vector<int64_t> NodeInfo::integers(const char* name) const {
  size_t size = 0;
  require(succeeded(api_, api_.ints_attribute(info_, name, nullptr, &size)), name,
          " must be given, as a list of integers");
  require(size <= 16, name, " must have at most 16 numbers");
  std::vector<int64_t> values(size);
  if (size > 0) must(api_, api_.ints_attribute(info_, name, values.data(), &size), "read integers");
  return values;
}

Tensor NodeInfo::constant(size_t index, const char* name, ort::ElementType type,
                          bool optional) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  const bool found = succeeded(api_, api_.constant_input(info_, index, &is_constant, &value));
  if (found && is_constant && value != nullptr) return view(api_, value, type);
  require(optional, name, " must be a constant initializer");
  return {};
}

Tensor Call::input(size_t index, ort::ElementType type) const {
  size_t count = 0;
  must(api_, api_.input_count(context_, &count), "count inputs");
  const ort::Value* value = nullptr;
  if (index >= count) return {};
  must(api_, api_.input(context_, index, &value), "give an input");
  return value == nullptr ? Tensor{} : view(api_, value, type);
}

void* Call::allocate(size_t index, const Shape& shape) const {
  ort::Value* value = nullptr;
  element_count(shape);
  must(api_, api_.output(context_, index, shape.dims, shape.rank, &value), "allocate the output");
  require(value != nullptr || index > 0, "the first output must be there");
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  must(api_, api_.tensor_data(value, &data), "give the output's data");
  return data;
}

void Call::run(size_t count, void (*task)(void*, size_t), void* argument) const {
  must(api_, api_.parallel_for(context_, task, count, 0, argument), "run in parallel");
}

}  // namespace mfac
