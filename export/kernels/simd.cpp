#include "simd.hpp"

#include <cstdlib>
#include <cstring>

namespace mfac {

SimdKernels portable_kernels();
#if defined(__x86_64__)
SimdKernels avx2_kernels();
SimdKernels avx512_kernels();
QuadKernels avx512vnni_quads();
ByteKernels avx512vnni_bytes();
void avx512vnni_depthwise(DepthwiseKernels& table);
#endif

namespace {

SimdKernels choose() {
  const char* wanted = std::getenv("MFAC_SPARSE_ISA");
  const bool any = wanted == nullptr || *wanted == 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && (any || std::strcmp(wanted, "avx512vnni") == 0)) {
    SimdKernels kernels = avx512_kernels();
    kernels.name = "avx512vnni";
    kernels.quads = avx512vnni_quads();
    kernels.bytes = avx512vnni_bytes();
    avx512vnni_depthwise(kernels.depthwise);
    return kernels;
  }
  if (avx512 && (any || std::strcmp(wanted, "avx512") == 0)) return avx512_kernels();
  if (avx2 && (any || std::strcmp(wanted, "portable") != 0)) return avx2_kernels();
#else
  (void)any;
#endif
  return portable_kernels();
}

}  // namespace

const SimdKernels& simd_kernels() {
  static const SimdKernels kernels = choose();
  return kernels;
}

int block_class(int64_t block) { return block == 16 ? 3 : block == 8 ? 2 : block == 4 ? 1 : 0; }

}  // namespace mfac
