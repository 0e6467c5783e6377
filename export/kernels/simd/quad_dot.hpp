// Four unsigned bytes times four signed bytes, added to a 32-bit sum, in every lane. No variant
// saturates in between: they all give the same sums.

template <int L>
MFAC_INLINE Ints<L> load_ints(const void* from) {
  Ints<L> value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <int L>
MFAC_INLINE void store_ints(void* to, Ints<L> value) {
  __builtin_memcpy(to, &value, sizeof value);
}

template <int L>
MFAC_INLINE Ints<L> broadcast_int(int32_t value) {
  return value - Ints<L>{};
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

template <int L>
struct QuadWeights {
  Ints<L> all;
  explicit MFAC_INLINE QuadWeights(Ints<L> weights) : all(weights) {}
};

#if defined(__AVX512VNNI__)
MFAC_INLINE void add_products(Ints<16>& sum, Ints<16> x, const QuadWeights<16>& w) {
  sum = (Ints<16>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w.all);
}
MFAC_INLINE void add_products(Ints<8>& sum, Ints<8> x, const QuadWeights<8>& w) {
  sum = (Ints<8>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)w.all);
}
MFAC_INLINE void add_products(Ints<4>& sum, Ints<4> x, const QuadWeights<4>& w) {
  sum = (Ints<4>)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)w.all);
}
#else  // the same instruction, in the encoding of processors without AVX-512
MFAC_INLINE void add_products(Ints<8>& sum, Ints<8> x, const QuadWeights<8>& w) {
  sum = (Ints<8>)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w.all);
}
MFAC_INLINE void add_products(Ints<4>& sum, Ints<4> x, const QuadWeights<4>& w) {
  sum = (Ints<4>)_mm_dpbusd_avx_epi32((__m128i)sum, (__m128i)x, (__m128i)w.all);
}
#endif

#elif defined(__SSE2__)

// The bytes at even and at odd positions, widened to 16 bits: two products fit into 32 bits.
template <int L>
struct QuadWeights {
  typedef int16_t Shorts __attribute__((vector_size(L * 4)));
  typedef uint16_t Unsigned __attribute__((vector_size(L * 4)));
  Shorts even, odd;
  explicit MFAC_INLINE QuadWeights(Ints<L> weights)
      : even((Shorts)((Unsigned)weights << 8) >> 8), odd((Shorts)weights >> 8) {}
};

#if defined(__AVX512BW__)
MFAC_INLINE Ints<16> multiply_pairs(Ints<16> a, Ints<16> b) {
  return (Ints<16>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#endif
#if defined(__AVX2__)
MFAC_INLINE Ints<8> multiply_pairs(Ints<8> a, Ints<8> b) {
  return (Ints<8>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#endif
MFAC_INLINE Ints<4> multiply_pairs(Ints<4> a, Ints<4> b) {
  return (Ints<4>)_mm_madd_epi16((__m128i)a, (__m128i)b);
}

template <class Vector, class Weights>
MFAC_INLINE void add_products(Vector& sum, Vector x, const Weights& w) {
  typedef uint16_t Shorts __attribute__((vector_size(sizeof(Vector))));
  sum += multiply_pairs(x & 0x00ff00ff, (Vector)w.even) +
         multiply_pairs((Vector)((Shorts)x >> 8), (Vector)w.odd);
}

#else

template <int L>
struct QuadWeights {
  Ints<L> each[4];
  explicit MFAC_INLINE QuadWeights(Ints<L> weights) {
    MFAC_UNROLL
    for (int i = 0; i < 4; ++i) each[i] = (Ints<L>)((Cells<L>)weights << (24 - 8 * i)) >> 24;
  }
};

template <class Vector, class Weights>
MFAC_INLINE void add_products(Vector& sum, Vector x, const Weights& w) {
  MFAC_UNROLL
  for (int i = 0; i < 4; ++i) sum += ((x >> (8 * i)) & 255) * w.each[i];
}

#endif
