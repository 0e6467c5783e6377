#include "simd.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

namespace mfac {

SimdKernels portable_kernels();
#if defined(__x86_64__)
SimdKernels avx2_kernels();
SimdKernels avx512_kernels();
void use_avx512vnni(SimdKernels& kernels);
bool use_avxvnni(SimdKernels& kernels);  // Returns whether the compiler knew AVX-VNNI.
#endif

namespace {

#if defined(__x86_64__)
// Not every compiler that knows AVX-VNNI has it in __builtin_cpu_supports.
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

SimdKernels choose() {
  const char* wanted = std::getenv("MFAC_SPARSE_ISA");
  const bool any = wanted == nullptr || *wanted == 0;
#if defined(__x86_64__)
  const auto takes = [&](const char* name) { return any || std::strcmp(wanted, name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512vnni") && takes("avx512vnni")) {
    SimdKernels kernels = avx512_kernels();
    use_avx512vnni(kernels);
    return kernels;
  }
  if (avx512 && takes("avx512")) return avx512_kernels();
  if (avx2 && has_avxvnni() && takes("avxvnni")) {
    SimdKernels kernels = avx2_kernels();
    if (use_avxvnni(kernels)) return kernels;
  }
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
