// The kernels of quantised operators for x86 with AVX-512 and VNNI. Compiled with those flags.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "simd.hpp"

#define MFAC_WIDE 16
#define MFAC_NARROW 8
#define MFAC_REGISTERS 32

namespace mfac {
namespace {
#include "simd/vnni_table.hpp"
}
void use_avx512vnni(SimdKernels& kernels) { use_vnni(kernels, "avx512vnni"); }
}  // namespace mfac
#endif
