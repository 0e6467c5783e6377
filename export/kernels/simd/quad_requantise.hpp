// Requantises 32-bit sums to unsigned bytes, as ONNX Runtime rounds them: in float32, ties to even.

template <int L>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(L)));
};

// The low bytes of integers. Where there is no instruction for it, GCC would take them one by one.
template <class Vector>
MFAC_INLINE void store_low_bytes(uint8_t* to, Vector integers) {
  const auto bytes =
      __builtin_convertvector(integers, typename BytesOf<sizeof(Vector) / 4>::type);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}
#if defined(__SSE2__)
MFAC_INLINE void store_low_bytes(uint8_t* to, Ints<4> integers) {
  const __m128i low = (__m128i)(integers & 255);
  const __m128i halves = _mm_packs_epi32(low, low);
  const __m128i bytes = _mm_packus_epi16(halves, halves);
  __builtin_memcpy(to, &bytes, 4);
}
#endif
#if defined(__AVX2__)
MFAC_INLINE void store_low_bytes(uint8_t* to, Ints<8> integers) {
  const __m256i low = (__m256i)(integers & 255);
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  const __m128i bytes = _mm_packus_epi16(halves, halves);
  __builtin_memcpy(to, &bytes, 8);
}
#endif

template <int L>
MFAC_INLINE void store_rounded(uint8_t* to, Floats<L> scaled, const Requantise& how) {
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Ints<L> rounded =
      (Ints<L>)(clip<L>(scaled, how.low, how.high) + 12582912.0f) + how.zero_point;
  store_low_bytes(to, rounded);
}

template <int L>
MFAC_INLINE void store_requantised(uint8_t* to, Ints<L> sums, Floats<L> scales,
                                   const Requantise& how) {
  store_rounded<L>(to, __builtin_convertvector(sums, Floats<L>) * scales, how);
}

template <int L>
void requantise_all(const int32_t* sums, const float* scales, int64_t count, Requantise how,
                    uint8_t* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    store_requantised<L>(out + i, load_ints<L>(sums + i), load<L>(scales + i), how);
  if (i == count) return;
  const size_t rest = static_cast<size_t>(count - i);
  Ints<L> last = {};
  Floats<L> scale = {};
  __builtin_memcpy(&last, sums + i, rest * 4);
  __builtin_memcpy(&scale, scales + i, rest * 4);
  uint8_t bytes[L];
  store_requantised<L>(bytes, last, scale, how);
  __builtin_memcpy(out + i, bytes, rest);
}
