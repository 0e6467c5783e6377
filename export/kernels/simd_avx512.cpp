// The kernels for x86 with AVX-512 (F, VL, BW, DQ). Compiled with those flags and -mfma.
#if defined(__AVX512F__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "simd.hpp"

#define MFAC_WIDE 16
#define MFAC_NARROW 8
#define MFAC_REGISTERS 32

namespace mfac {
namespace {
#include "simd/table.hpp"
}
SimdKernels avx512_kernels() { return make_table("avx512"); }
}  // namespace mfac
#endif
