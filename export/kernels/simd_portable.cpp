// The kernels for any processor: vectors of four, as every x86-64 and aarch64 has them.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "simd.hpp"

#define MFAC_WIDE 4
#define MFAC_NARROW 4
#if defined(__aarch64__)
#define MFAC_REGISTERS 32
#else
#define MFAC_REGISTERS 16
#endif

namespace mfac {
namespace {
#include "simd/table.hpp"
}
SimdKernels portable_kernels() { return make_table("portable"); }
}  // namespace mfac
