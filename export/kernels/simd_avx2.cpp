// The kernels for x86 with AVX2 and FMA. Compiled with -mavx2 -mfma.
#if defined(__AVX2__)
#include <immintrin.h>

#include "simd.hpp"

#define MFAC_WIDE 8
#define MFAC_NARROW 8
#define MFAC_REGISTERS 16

namespace mfac {
namespace {
#include "simd/table.hpp"
}
SimdKernels avx2_kernels() { return make_table("avx2"); }
}  // namespace mfac
#endif
