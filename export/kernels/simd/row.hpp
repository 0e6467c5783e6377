// One row of activations: the outputs of a group are the lanes, the inputs are looked up.

#if MFAC_GATHER == 16
MFAC_INLINE Floats<16> gather(const float* from, const int32_t* offsets) {
  return (Floats<16>)_mm512_i32gather_ps(_mm512_loadu_si512(offsets), from, 4);
}
#elif MFAC_GATHER == 8
MFAC_INLINE Floats<8> gather(const float* from, const int32_t* offsets) {
  return (Floats<8>)_mm256_i32gather_ps(from, _mm256_loadu_si256((const __m256i*)offsets), 4);
}
#else
MFAC_INLINE Floats<4> gather(const float* from, const int32_t* offsets) {
  return Floats<4>{from[offsets[0]], from[offsets[1]], from[offsets[2]], from[offsets[3]]};
}
#endif

MFAC_INLINE float finished(const Strip& s, int64_t output, float y) {
  if (s.residual) y += s.residual[output];
  y = y < s.low ? s.low : y;
  return y > s.high ? s.high : y;
}

void row_of_singles(const Strip& s) {
  constexpr int L = MFAC_GATHER;
  const float* x = reinterpret_cast<const float*>(s.base);
  for (int64_t group = s.group_begin; group < s.group_end; ++group) {
    int32_t i = s.starts[group];
    const int32_t end = s.starts[group + 1];
    Floats<L> sums[2] = {};
    for (; i + 2 * L <= end; i += 2 * L) {
      sums[0] += load<L>(s.values + i) * gather(x, s.offsets + i);
      sums[1] += load<L>(s.values + i + L) * gather(x, s.offsets + i + L);
    }
    for (; i + L <= end; i += L) sums[0] += load<L>(s.values + i) * gather(x, s.offsets + i);
    float y = s.bias[group];
    for (; i < end; ++i) y += s.values[i] * x[s.offsets[i]];
    float lanes[L];
    store<L>(lanes, sums[0] + sums[1]);
    for (int step = L / 2; step > 0; step /= 2)
      for (int lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
    s.out[group] = finished(s, group, y + lanes[0]);
  }
}

// L lanes hold one block, or the largest vector's worth of it.
template <int BLOCK, int L>
void row_of_blocks(const Strip& s) {
  constexpr int kParts = BLOCK / L;
  constexpr int kChains = kParts >= 4 ? 1 : 4 / kParts;
  const float* x = reinterpret_cast<const float*>(s.base);
  for (int64_t group = s.group_begin; group < s.group_end; ++group) {
    Floats<L> sum[kChains][kParts] = {};
    int32_t i = s.starts[group];
    const int32_t end = s.starts[group + 1];
    for (; i + kChains <= end; i += kChains) {
      MFAC_UNROLL
      for (int c = 0; c < kChains; ++c) {
        const float* values = s.values + int64_t{i + c} * BLOCK;
        MFAC_UNROLL
        for (int p = 0; p < kParts; ++p) sum[c][p] += x[s.offsets[i + c]] * load<L>(values + p * L);
      }
    }
    for (; i < end; ++i) {
      MFAC_UNROLL
      for (int p = 0; p < kParts; ++p)
        sum[0][p] += x[s.offsets[i]] * load<L>(s.values + int64_t{i} * BLOCK + p * L);
    }
    MFAC_UNROLL
    for (int p = 0; p < kParts; ++p) {
      Floats<L> y = load<L>(s.bias + group * BLOCK + p * L);
      MFAC_UNROLL
      for (int c = 0; c < kChains; ++c) y += sum[c][p];
      float lanes[L];
      store<L>(lanes, y);
      for (int lane = 0; lane < L; ++lane) {
        const int64_t output = group * BLOCK + p * L + lane;
        if (output < s.outputs) s.out[output] = finished(s, output, lanes[lane]);
      }
    }
  }
}
