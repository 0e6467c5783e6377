// One row of activations: the outputs of a group are the lanes, the inputs are looked up.

MFAC_INLINE float finished(const Strip& s, int64_t output, float y) {
  if (s.residual) y += s.residual[output];
  y = y < s.low ? s.low : y;
  return y > s.high ? s.high : y;
}

// Keep a float in a scalar register of its own.
#if defined(__aarch64__)
#define MFAC_ALONE(value) asm("" : "+w"(value))
#else
#define MFAC_ALONE(value) asm("" : "+x"(value))
#endif

// Scalar on purpose: gathering 16 inputs was measured to be slower than 16 loads (Zen 4).
void row_of_singles(const Strip& s) {
  constexpr int kChains = 8;
  const float* x = reinterpret_cast<const float*>(s.base);
  for (int64_t group = s.group_begin; group < s.group_end; ++group) {
    int32_t i = s.starts[group];
    const int32_t end = s.starts[group + 1];
    float sum[kChains] = {s.bias[group]};
    for (; i + kChains <= end; i += kChains) {
      MFAC_UNROLL
      for (int c = 0; c < kChains; ++c) {
        sum[c] += s.values[i + c] * x[s.offsets[i + c]];
        MFAC_ALONE(sum[c]);
      }
    }
    for (; i < end; ++i) sum[0] += s.values[i] * x[s.offsets[i]];
    float total = 0;
    for (int c = 0; c < kChains; ++c) total += sum[c];
    s.out[group] = finished(s, group, total);
  }
}

// L lanes hold one block, or as much of it as fits the largest vector.
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
