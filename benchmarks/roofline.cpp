// What one core can do at most: the roofs that sparse_roofline.py compares kernels with.
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace {

template <int L>
struct Vector {
  typedef float type __attribute__((vector_size(L * 4)));
};

// Multiply-adds of L lanes: from registers, or with one operand from the first cache.
template <int L, bool FROM_CACHE>
void multiply_add(int64_t rounds) {
  using Floats = typename Vector<L>::type;
  constexpr int kSums = 12;
  alignas(64) static float values[1024] = {};
  Floats sums[kSums] = {};
  Floats weight = {};
  for (int64_t round = 0; round < rounds; ++round) {
    const float* from = values + round % 16 * L;
    asm volatile("" : "+r"(from));
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      Floats x = weight;
      if (FROM_CACHE) std::memcpy(&x, from + i * L, sizeof x);
      sums[i] += weight * x;
    }
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+x"(sums[i]));
  }
}

}  // namespace

// Each call does `rounds` * 12 * lanes multiply-adds.
extern "C" void fma_8(int64_t rounds) { multiply_add<8, false>(rounds); }
extern "C" void fma_16(int64_t rounds) { multiply_add<16, false>(rounds); }
extern "C" void loads_8(int64_t rounds) { multiply_add<8, true>(rounds); }
extern "C" void loads_16(int64_t rounds) { multiply_add<16, true>(rounds); }

#if defined(__AVX512VNNI__)
// The same for bytes: `rounds` * 12 * 64 multiply-adds.
extern "C" void dots(int64_t rounds) {
  constexpr int kSums = 12;
  __m512i sums[kSums] = {};
  __m512i x = {}, weight = {};
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(x), "+v"(weight));
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, weight);
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+v"(sums[i]));
  }
}
#endif

// Read `count` floats once; the sum keeps the loop alive.
extern "C" float stream(const float* values, int64_t count) {
  using Floats = Vector<8>::type;
  Floats sums[4] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      Floats x;
      std::memcpy(&x, values + i + c * 8, sizeof x);
      sums[c] += x;
    }
  }
  float total = 0;
  for (int lane = 0; lane < 8; ++lane)
    total += sums[0][lane] + sums[1][lane] + sums[2][lane] + sums[3][lane];
  return total;
}
