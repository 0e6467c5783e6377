// Sparse quads times strips of T vectors, as strip.hpp does for floats.

template <int L, int T, int CHAINS>
MFAC_INLINE void quad_strip_output(const QuadStrip& s, int64_t output) {
  Ints<L> sum[CHAINS][T];
  int32_t* kept = s.sums + output * s.sums_stride;
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) {
    sum[0][t] = s.first ? broadcast_int<L>(s.begin[output]) : load_ints<L>(kept + t * L);
    MFAC_UNROLL
    for (int c = 1; c < CHAINS; ++c) sum[c][t] = Ints<L>{};
  }
  int32_t i = s.starts[output];
  const int32_t end = s.starts[output + 1];
  for (; i + CHAINS <= end; i += CHAINS) {
    MFAC_UNROLL
    for (int c = 0; c < CHAINS; ++c) {
      const char* from = s.base + s.offsets[i + c];
      const QuadWeights<L> w(broadcast_int<L>(s.values[i + c]));
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) add_products(sum[c][t], load_ints<L>(from + t * L * 4), w);
    }
  }
  if (CHAINS > 1) {
    for (; i < end; ++i) {
      const char* from = s.base + s.offsets[i];
      const QuadWeights<L> w(broadcast_int<L>(s.values[i]));
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) add_products(sum[0][t], load_ints<L>(from + t * L * 4), w);
    }
  }
  for (int c = 1; c < CHAINS; ++c) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) sum[0][t] += sum[c][t];
  }
  if (!s.last) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) store_ints<L>(kept + t * L, sum[0][t]);
    return;
  }
  const Floats<L> scale = broadcast<L>(s.scales[output]);
  uint8_t* out = s.out + output * s.out_stride;
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) store_requantised<L>(out + t * L, sum[0][t], scale, s.requantise);
}

template <int L, int T>
void quad_strip(const QuadStrip& given) {
  const QuadStrip s = given;  // a local copy, which stores cannot alias
  constexpr int kChains = T >= 6 ? 1 : T >= 3 ? 2 : 4;
  for (int64_t output = 0; output < s.outputs; ++output)
    quad_strip_output<L, T, kChains>(s, output);
}

template <int L, int T, int LONGEST>
struct FillQuadStrips {
  static void into(QuadStripFunction* run) {
    run[T] = quad_strip<L, T>;
    FillQuadStrips<L, T + 1, LONGEST>::into(run);
  }
};
template <int L, int LONGEST>
struct FillQuadStrips<L, LONGEST, LONGEST> {
  static void into(QuadStripFunction* run) { run[LONGEST] = quad_strip<L, LONGEST>; }
};

template <int L>
QuadStripTable quad_strip_table() {
  QuadStripTable table = {};
  table.lanes = L;
  table.longest = MFAC_REGISTERS == 32 ? 16 : 8;
  FillQuadStrips<L, 1, MFAC_REGISTERS == 32 ? 16 : 8>::into(table.run);
  return table;
}
