// The part of ONNX Runtime's C ABI that this library uses, declared by its documented layout.
//
// The wheels do not contain the header. The function table only grows at its end, so an entry's
// position is part of the ABI; each is named below. A library that requests API version 18 loads in
// every later ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mfac::ort {

constexpr uint32_t kApiVersion = 18;  // the first in which an input and an output may share memory

struct Status;  // null: success
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// The function table: an array of pointers, read by position.
class Api {
 public:
  Status* create_status(ErrorCode code, const char* text) const {
    return at<Status* (*)(ErrorCode, const char*)>(0)(code, text);
  }
  Status* create_domain(const char* name, CustomOpDomain** out) const {
    return at<Status* (*)(const char*, CustomOpDomain**)>(26)(name, out);
  }
  Status* add_to_domain(CustomOpDomain* domain, const void* op) const {
    return at<Status* (*)(CustomOpDomain*, const void*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status* (*)(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* tensor_data(Value* value, void** out) const {
    return at<Status* (*)(Value*, void**)>(51)(value, out);
  }
  Status* element_type(const TensorInfo* info, ElementType* out) const {
    return at<Status* (*)(const TensorInfo*, ElementType*)>(60)(info, out);
  }
  Status* rank(const TensorInfo* info, size_t* out) const {
    return at<Status* (*)(const TensorInfo*, size_t*)>(61)(info, out);
  }
  Status* dimensions(const TensorInfo* info, int64_t* out, size_t count) const {
    return at<Status* (*)(const TensorInfo*, int64_t*, size_t)>(62)(info, out, count);
  }
  Status* tensor_info(const Value* value, TensorInfo** out) const {
    return at<Status* (*)(const Value*, TensorInfo**)>(65)(value, out);
  }
  Status* float_attribute(const KernelInfo* info, const char* name, float* out) const {
    return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  Status* int_attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
  }
  Status* string_attribute(const KernelInfo* info, const char* name, char* out,
                           size_t* size) const {
    return at<Status* (*)(const KernelInfo*, const char*, char*, size_t*)>(87)(info, name, out,
                                                                               size);
  }
  Status* input_count(const KernelContext* context, size_t* out) const {
    return at<Status* (*)(const KernelContext*, size_t*)>(88)(context, out);
  }
  Status* input(const KernelContext* context, size_t index, const Value** out) const {
    return at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* shape, size_t rank,
                 Value** out) const {
    return at<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(
        context, index, shape, rank, out);
  }
  void release_status(Status* status) const { at<void (*)(Status*)>(93)(status); }
  void release_tensor_info(TensorInfo* info) const { at<void (*)(TensorInfo*)>(99)(info); }
  Status* ints_attribute(const KernelInfo* info, const char* name, int64_t* out,
                         size_t* size) const {
    return at<Status* (*)(const KernelInfo*, const char*, int64_t*, size_t*)>(163)(info, name, out,
                                                                                   size);
  }
  Status* constant_input(const KernelInfo* info, size_t index, int* is_constant,
                         const Value** out) const {
    return at<Status* (*)(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index,
                                                                                is_constant, out);
  }
  Status* parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t total,
                       size_t batches, void* argument) const {
    return at<Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
        274)(context, task, total, batches, argument);
  }

 private:
  template <class Function>
  Function at(size_t position) const {
    return reinterpret_cast<Function>(reinterpret_cast<void* const*>(this)[position]);
  }
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version)();
};

// OrtCustomOp, as far as API version 18 reads it.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_type_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_type_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  // Pairs of an input and an output that may share memory; returns how many.
  size_t (*may_share)(int** inputs, int** outputs);
  void (*release_may_share)(int* inputs, int* outputs);
  size_t (*aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};

}  // namespace mfac::ort
