// Bytes interleaved and packed within lanes of 128 bits, in vectors of one, two or four lanes.

template <int L>
struct BytesIn {
  typedef uint8_t type __attribute__((vector_size(L * 4)));
};
template <int L>
using ByteVector = typename BytesIn<L>::type;

template <int L>
MFAC_INLINE ByteVector<L> load_bytes(const uint8_t* from) {
  ByteVector<L> value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

MFAC_INLINE Bytes low_pairs(Bytes a, Bytes b) { return (Bytes)low_halves((Halves)a, (Halves)b); }
MFAC_INLINE Bytes high_pairs(Bytes a, Bytes b) { return (Bytes)high_halves((Halves)a, (Halves)b); }

#if defined(__AVX2__)
MFAC_INLINE ByteVector<8> low_bytes(ByteVector<8> a, ByteVector<8> b) {
  return (ByteVector<8>)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
}
MFAC_INLINE ByteVector<8> high_bytes(ByteVector<8> a, ByteVector<8> b) {
  return (ByteVector<8>)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
}
MFAC_INLINE ByteVector<8> low_pairs(ByteVector<8> a, ByteVector<8> b) {
  return (ByteVector<8>)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
}
MFAC_INLINE ByteVector<8> high_pairs(ByteVector<8> a, ByteVector<8> b) {
  return (ByteVector<8>)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
}
#endif

#if defined(__AVX512BW__)
MFAC_INLINE ByteVector<16> low_bytes(ByteVector<16> a, ByteVector<16> b) {
  return (ByteVector<16>)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b);
}
MFAC_INLINE ByteVector<16> high_bytes(ByteVector<16> a, ByteVector<16> b) {
  return (ByteVector<16>)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b);
}
MFAC_INLINE ByteVector<16> low_pairs(ByteVector<16> a, ByteVector<16> b) {
  return (ByteVector<16>)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
}
MFAC_INLINE ByteVector<16> high_pairs(ByteVector<16> a, ByteVector<16> b) {
  return (ByteVector<16>)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
}
#endif

// Lanes that are `stride` apart.
template <int L>
MFAC_INLINE ByteVector<L> load_lanes(const uint8_t* from, int64_t stride);
template <>
MFAC_INLINE ByteVector<4> load_lanes<4>(const uint8_t* from, int64_t) {
  return load_bytes<4>(from);
}
#if defined(__AVX2__)
template <>
MFAC_INLINE ByteVector<8> load_lanes<8>(const uint8_t* from, int64_t stride) {
  const __m256i low = _mm256_castsi128_si256((__m128i)load_bytes<4>(from));
  return (ByteVector<8>)_mm256_inserti128_si256(low, (__m128i)load_bytes<4>(from + stride), 1);
}
#endif
#if defined(__AVX512BW__)
template <>
MFAC_INLINE ByteVector<16> load_lanes<16>(const uint8_t* from, int64_t stride) {
  const __m512i low = _mm512_castsi256_si512((__m256i)load_lanes<8>(from, stride));
  const __m256i high = (__m256i)load_lanes<8>(from + 2 * stride, stride);
  return (ByteVector<16>)_mm512_inserti64x4(low, high, 1);
}
#endif

// Store lane after lane, `stride` apart.
MFAC_INLINE void store_lanes(uint8_t* to, int64_t, Bytes value) {
  __builtin_memcpy(to, &value, sizeof value);
}
#if defined(__AVX2__)
MFAC_INLINE void store_lanes(uint8_t* to, int64_t stride, ByteVector<8> value) {
  store_lanes(to, 0, (Bytes)_mm256_castsi256_si128((__m256i)value));
  store_lanes(to + stride, 0, (Bytes)_mm256_extracti128_si256((__m256i)value, 1));
}
#endif
#if defined(__AVX512BW__)
MFAC_INLINE void store_lanes(uint8_t* to, int64_t stride, ByteVector<16> value) {
  store_lanes(to, stride, (ByteVector<8>)_mm512_castsi512_si256((__m512i)value));
  store_lanes(to + 2 * stride, stride,
              (ByteVector<8>)_mm512_extracti64x4_epi64((__m512i)value, 1));
}
#endif

// Four vectors of sums, in the order in which the bytes of positions were interleaved, in the order
// of positions: a lane of each vector holds four of the lane's sixteen positions.
template <int L>
MFAC_INLINE void store_in_order(int32_t* to, const Ints<L>* sums) {
  MFAC_UNROLL
  for (int t = 0; t < 4; ++t)
    store_lanes(reinterpret_cast<uint8_t*>(to + 4 * t), 64, (ByteVector<L>)sums[t]);
}
#if defined(__AVX512BW__)
// In whole vectors: the lanes of four are transposed first.
template <>
MFAC_INLINE void store_in_order<16>(int32_t* to, const Ints<16>* sums) {
  const __m512i a = (__m512i)sums[0], b = (__m512i)sums[1];
  const __m512i c = (__m512i)sums[2], d = (__m512i)sums[3];
  const __m512i low_ab = _mm512_shuffle_i32x4(a, b, 0x44), low_cd = _mm512_shuffle_i32x4(c, d, 0x44);
  const __m512i high_ab = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i high_cd = _mm512_shuffle_i32x4(c, d, 0xee);
  _mm512_storeu_si512(to, _mm512_shuffle_i32x4(low_ab, low_cd, 0x88));
  _mm512_storeu_si512(to + 16, _mm512_shuffle_i32x4(low_ab, low_cd, 0xdd));
  _mm512_storeu_si512(to + 32, _mm512_shuffle_i32x4(high_ab, high_cd, 0x88));
  _mm512_storeu_si512(to + 48, _mm512_shuffle_i32x4(high_ab, high_cd, 0xdd));
}
#endif

// Four vectors of sums, in the order in which the bytes of positions were interleaved, as unsigned
// bytes in the order of positions. With BOUNDED no product leaves the integers of 32 bits upwards;
// one that leaves them downwards becomes the smallest integer. The packs saturate and restore the
// order.
#if defined(__SSE2__)

struct ByteBounds {
  char low, high;
  explicit MFAC_INLINE ByteBounds(const Requantise& how)
      : low(static_cast<char>(static_cast<int32_t>(how.low) + how.zero_point)),
        high(static_cast<char>(static_cast<int32_t>(how.high) + how.zero_point)) {}
};

template <bool BOUNDED>
MFAC_INLINE __m128i scaled_ints(Ints<4> sums, float scale, float high) {
  __m128 scaled = _mm_mul_ps(_mm_cvtepi32_ps((__m128i)sums), _mm_set1_ps(scale));
  if (!BOUNDED) scaled = _mm_min_ps(scaled, _mm_set1_ps(high));
  return _mm_cvtps_epi32(scaled);
}
template <bool BOUNDED>
MFAC_INLINE __m128i packed(const Ints<4>* sums, float scale, const Requantise& how) {
  const auto at = [&](int t) { return scaled_ints<BOUNDED>(sums[t], scale, how.high); };
  const __m128i zero = _mm_set1_epi16(static_cast<int16_t>(how.zero_point));
  const __m128i a = _mm_adds_epi16(_mm_packs_epi32(at(0), at(1)), zero);
  const __m128i b = _mm_adds_epi16(_mm_packs_epi32(at(2), at(3)), zero);
  const ByteBounds bounds(how);
  return _mm_max_epu8(_mm_min_epu8(_mm_packus_epi16(a, b), _mm_set1_epi8(bounds.high)),
                      _mm_set1_epi8(bounds.low));
}

#if defined(__AVX2__)
template <bool BOUNDED>
MFAC_INLINE __m256i scaled_ints(Ints<8> sums, float scale, float high) {
  __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps((__m256i)sums), _mm256_set1_ps(scale));
  if (!BOUNDED) scaled = _mm256_min_ps(scaled, _mm256_set1_ps(high));
  return _mm256_cvtps_epi32(scaled);
}
template <bool BOUNDED>
MFAC_INLINE __m256i packed(const Ints<8>* sums, float scale, const Requantise& how) {
  const auto at = [&](int t) { return scaled_ints<BOUNDED>(sums[t], scale, how.high); };
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(how.zero_point));
  const __m256i a = _mm256_adds_epi16(_mm256_packs_epi32(at(0), at(1)), zero);
  const __m256i b = _mm256_adds_epi16(_mm256_packs_epi32(at(2), at(3)), zero);
  const ByteBounds bounds(how);
  return _mm256_max_epu8(_mm256_min_epu8(_mm256_packus_epi16(a, b), _mm256_set1_epi8(bounds.high)),
                         _mm256_set1_epi8(bounds.low));
}
#endif

#if defined(__AVX512BW__)
template <bool BOUNDED>
MFAC_INLINE __m512i scaled_ints(Ints<16> sums, float scale, float high) {
  __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sums), _mm512_set1_ps(scale));
  if (!BOUNDED) scaled = _mm512_min_ps(scaled, _mm512_set1_ps(high));
  return _mm512_cvtps_epi32(scaled);
}
template <bool BOUNDED>
MFAC_INLINE __m512i packed(const Ints<16>* sums, float scale, const Requantise& how) {
  const auto at = [&](int t) { return scaled_ints<BOUNDED>(sums[t], scale, how.high); };
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(how.zero_point));
  const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(at(0), at(1)), zero);
  const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(at(2), at(3)), zero);
  const ByteBounds bounds(how);
  return _mm512_max_epu8(
      _mm512_min_epu8(_mm512_packus_epi16(a, b), _mm512_set1_epi8(bounds.high)),
      _mm512_set1_epi8(bounds.low));
}
#endif

template <bool BOUNDED, class Vector>
MFAC_INLINE void store_packed(uint8_t* to, const Vector* sums, float scale, const Requantise& how) {
  const auto bytes = packed<BOUNDED>(sums, scale, how);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// For pairs (t, r) of 16 bits, t times the low half of a factor plus r times its high half.
MFAC_INLINE Ints<4> sums_of_pairs(Bytes pairs, Ints<4> factors) {
  return (Ints<4>)_mm_madd_epi16((__m128i)pairs, (__m128i)factors);
}
MFAC_INLINE Bytes packed_ints(const Ints<4>* v) {
  const auto at = [&](int t) { return (__m128i)v[t]; };
  return (Bytes)_mm_packus_epi16(_mm_packs_epi32(at(0), at(1)), _mm_packs_epi32(at(2), at(3)));
}
MFAC_INLINE Bytes clipped(Bytes bytes, uint8_t low, uint8_t high) {
  return (Bytes)_mm_max_epu8(_mm_min_epu8((__m128i)bytes, _mm_set1_epi8(static_cast<char>(high))),
                             _mm_set1_epi8(static_cast<char>(low)));
}
#if defined(__AVX2__)
MFAC_INLINE Ints<8> sums_of_pairs(ByteVector<8> pairs, Ints<8> factors) {
  return (Ints<8>)_mm256_madd_epi16((__m256i)pairs, (__m256i)factors);
}
MFAC_INLINE ByteVector<8> packed_ints(const Ints<8>* v) {
  const auto at = [&](int t) { return (__m256i)v[t]; };
  return (ByteVector<8>)_mm256_packus_epi16(_mm256_packs_epi32(at(0), at(1)),
                                            _mm256_packs_epi32(at(2), at(3)));
}
MFAC_INLINE ByteVector<8> clipped(ByteVector<8> bytes, uint8_t low, uint8_t high) {
  return (ByteVector<8>)_mm256_max_epu8(
      _mm256_min_epu8((__m256i)bytes, _mm256_set1_epi8(static_cast<char>(high))),
      _mm256_set1_epi8(static_cast<char>(low)));
}
#endif
#if defined(__AVX512BW__)
MFAC_INLINE Ints<16> sums_of_pairs(ByteVector<16> pairs, Ints<16> factors) {
  return (Ints<16>)_mm512_madd_epi16((__m512i)pairs, (__m512i)factors);
}
MFAC_INLINE ByteVector<16> packed_ints(const Ints<16>* v) {
  const auto at = [&](int t) { return (__m512i)v[t]; };
  return (ByteVector<16>)_mm512_packus_epi16(_mm512_packs_epi32(at(0), at(1)),
                                             _mm512_packs_epi32(at(2), at(3)));
}
MFAC_INLINE ByteVector<16> clipped(ByteVector<16> bytes, uint8_t low, uint8_t high) {
  return (ByteVector<16>)_mm512_max_epu8(
      _mm512_min_epu8((__m512i)bytes, _mm512_set1_epi8(static_cast<char>(high))),
      _mm512_set1_epi8(static_cast<char>(low)));
}
#endif

#else  // lanes of 128 bits only: the order of positions was kept

template <bool BOUNDED>
MFAC_INLINE void store_packed(uint8_t* to, const Ints<4>* sums, float scale,
                              const Requantise& how) {
  MFAC_UNROLL
  for (int t = 0; t < 4; ++t)
    store_requantised<4>(to + t * 4, sums[t], broadcast<4>(scale), how);
}

MFAC_INLINE Ints<4> sums_of_pairs(Bytes pairs, Ints<4> factors) {
  const Ints<4> both = (Ints<4>)pairs;
  return (both & 0xffff) * (factors & 0xffff) + (both >> 16) * (factors >> 16);
}
MFAC_INLINE Bytes packed_ints(const Ints<4>* v) {
  Bytes bytes;
  for (int i = 0; i < 16; ++i) {
    const int32_t value = v[i / 4][i % 4];
    bytes[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
  }
  return bytes;
}
MFAC_INLINE Bytes clipped(Bytes bytes, uint8_t low, uint8_t high) {
  const Bytes least = low - Bytes{}, most = high - Bytes{};
  bytes = bytes < least ? least : bytes;
  return bytes > most ? most : bytes;
}

#endif

// Bytes with a residual added. Interleaved with it and then with zeros, they are pairs of 16 bits in
// the order that the packs restore.
template <class Vector>
MFAC_INLINE Vector with_residual(Vector bytes, Vector residual, const ByteAddition& add) {
  constexpr int L = sizeof(Vector) / 4;
  const Vector none = {};
  const Vector low = low_bytes(bytes, residual), high = high_bytes(bytes, residual);
  const Vector pairs[4] = {low_bytes(low, none), high_bytes(low, none), low_bytes(high, none),
                           high_bytes(high, none)};
  const Ints<L> factors = broadcast_int<L>(add.residual_factor * 65536 + add.factor);
  const Ints<L> offset = broadcast_int<L>(add.offset);
  Ints<L> sums[4];
  MFAC_UNROLL
  for (int t = 0; t < 4; ++t) sums[t] = (sums_of_pairs(pairs[t], factors) + offset) >> add.shift;
  return clipped(packed_ints(sums), add.low, add.high);
}

template <class Ints>
MFAC_INLINE void store_added(uint8_t* to, const Ints* sums, float scale, const Requantise& how,
                             const uint8_t* residual, const ByteAddition& add) {
  constexpr int L = sizeof(Ints) / 4;
  store_packed<false>(to, sums, scale, how);
  const auto bytes = with_residual(load_bytes<L>(to), load_bytes<L>(residual), add);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}
