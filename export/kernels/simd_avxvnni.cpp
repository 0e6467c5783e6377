// The kernels of quantised operators for x86 with AVX2 and AVX-VNNI, which some processors without
// AVX-512 have. Compiled with those flags, if the compiler knows them.
#include "simd.hpp"

#if defined(__AVXVNNI__)
#include <immintrin.h>

#define MFAC_WIDE 8
#define MFAC_NARROW 8
#define MFAC_REGISTERS 16

namespace mfac {
namespace {
#include "simd/vnni_table.hpp"
}
bool use_avxvnni(SimdKernels& kernels) {
  use_vnni(kernels, "avxvnni");
  return true;
}
}  // namespace mfac
#elif defined(__x86_64__)
namespace mfac {
bool use_avxvnni(SimdKernels&) { return false; }
}  // namespace mfac
#endif
