// Packs unsigned bytes into quads, sixteen at a time.

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));

// The first N bytes of a vector: 4, 8 or 16.
template <int N>
MFAC_INLINE Bytes load_first(const uint8_t* from) {
  typedef uint64_t Longs __attribute__((vector_size(16)));
  uint64_t parts[2] = {};
  __builtin_memcpy(parts, from, N);
  return (Bytes)Longs{parts[0], parts[1]};
}

MFAC_INLINE Bytes low_bytes(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
MFAC_INLINE Bytes high_bytes(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
MFAC_INLINE Halves low_halves(Halves a, Halves b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
MFAC_INLINE Halves high_halves(Halves a, Halves b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// N bytes, STEP apart; reads STEP * (N - 1) + 1 of them.
template <int N, int STEP>
MFAC_INLINE Bytes pick_bytes(const uint8_t* from) {
  if (STEP == 1) return load_first<N>(from);
  const Bytes a = load_first<N>(from), b = load_first<N>(from + N - 1);
  if (N == 4)
    return __builtin_shufflevector(a, b, 0, 2, 17, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  if (N == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 17, 19, 21, 23, 0, 0, 0, 0, 0, 0, 0, 0);
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Each vector separately: GCC would spill an array of them to memory.
MFAC_INLINE void store_halves(Cell* to, Halves value) {
  __builtin_memcpy(to, &value, sizeof value);
}

template <int N>
MFAC_INLINE void store_quads(Cell* to, Bytes a, Bytes b, Bytes c, Bytes d) {
  const Halves low_ab = (Halves)low_bytes(a, b), low_cd = (Halves)low_bytes(c, d);
  store_halves(to, low_halves(low_ab, low_cd));
  if (N == 4) return;
  store_halves(to + 4, high_halves(low_ab, low_cd));
  if (N == 8) return;
  const Halves high_ab = (Halves)high_bytes(a, b), high_cd = (Halves)high_bytes(c, d);
  store_halves(to + 8, low_halves(high_ab, high_cd));
  store_halves(to + 12, high_halves(high_ab, high_cd));
}

// N at a time; the last N overlap the previous ones.
template <int N, int STEP>
MFAC_INLINE void interleave_many(const uint8_t* const* from, int64_t count, Cell* to) {
  for (int64_t next = 0; next < count; next += N) {
    const int64_t i = next + N <= count ? next : count - N;
    const int64_t at = i * STEP;
    store_quads<N>(to + i, pick_bytes<N, STEP>(from[0] + at), pick_bytes<N, STEP>(from[1] + at),
                   pick_bytes<N, STEP>(from[2] + at), pick_bytes<N, STEP>(from[3] + at));
  }
}

MFAC_INLINE void interleave(const uint8_t* const* from, int64_t step, int64_t count, Cell* to) {
  if (step == 1 && count >= 16) return interleave_many<16, 1>(from, count, to);
  if (step == 1 && count >= 8) return interleave_many<8, 1>(from, count, to);
  if (step == 1 && count >= 4) return interleave_many<4, 1>(from, count, to);
  if (step == 2 && count >= 16) return interleave_many<16, 2>(from, count, to);
  if (step == 2 && count >= 8) return interleave_many<8, 2>(from, count, to);
  if (step == 2 && count >= 4) return interleave_many<4, 2>(from, count, to);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * step;
    const uint8_t quad[kQuad] = {from[0][at], from[1][at], from[2][at], from[3][at]};
    __builtin_memcpy(to + i, quad, sizeof quad);
  }
}

void copy_quads(const QuadCopy& given) {
  const QuadCopy c = given;
  const uint8_t around[kQuad] = {c.around, c.around, c.around, c.around};
  Cell border;
  __builtin_memcpy(&border, around, sizeof border);
  Cell* to = c.to;
  for (int64_t r = 0; r < c.rows; ++r, to += c.to_stride) {
    const uint8_t* from[kQuad];
    for (int64_t q = 0; q < kQuad; ++q)  // a missing channel has no weights
      from[q] = c.from + (q < c.channels ? q : 0) * c.channel_stride + r * c.row_stride;
    for (int64_t i = 0; i < c.before; ++i) to[i] = border;
    interleave(from, c.step, c.count, to + c.before);
    for (int64_t i = c.before + c.count; i < c.to_stride; ++i) to[i] = border;
  }
}
