// The kernels of quantised operators for x86 with AVX-512 and VNNI. Compiled with those flags.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "depthwise.hpp"
#include "quads.hpp"
#include "quantised_blocks.hpp"

#define MFAC_WIDE 16
#define MFAC_NARROW 8
#define MFAC_REGISTERS 32

namespace mfac {
namespace {
#include "simd/vector.hpp"

#include "simd/quad_table.hpp"

#include "simd/byte_depthwise.hpp"
}  // namespace
QuadKernels avx512vnni_quads() { return make_quad_table(); }
ByteKernels avx512vnni_bytes() { return make_byte_table(); }
void avx512vnni_depthwise(DepthwiseKernels& table) { fill_byte_depthwise(table); }
}  // namespace mfac
#endif
