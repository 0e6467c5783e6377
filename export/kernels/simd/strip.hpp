// The microkernel: sparse weights times strips of T vectors, accumulated in registers.
//
// PART outputs of a group are computed together, so that the accumulators fit the registers; with
// few of them, CHAINS independent sets hide the latency of the multiply-add.

// Position of vector t of a strip: contiguous, or in rows of V with kBetweenRows between them.
template <int L, int V>
constexpr int place(int t) {
  return V == 0 ? t * L : t / (V ? V : 1) * (V * L + kBetweenRows) + t % (V ? V : 1) * L;
}

// The same in a strip whose last vector overlaps the one before by `back` floats.
template <int L, int V, int T>
MFAC_INLINE int64_t place_in(int t, int64_t back) {
  return place<L, V>(t) - (V == 0 && T > 1 && t == T - 1 ? back : 0);
}

// Finish the sums of the output at `at`. `zeros` stays 0 as long as all values are finite.
template <int L, int V, int T>
MFAC_INLINE void finish(const Strip& s, int64_t at, Floats<L>* y, Floats<L>* zeros) {
  if (s.residual) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) y[t] += load<L>(s.residual + at + place_in<L, V, T>(t, s.back));
  }
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) y[t] = clip<L>(y[t], s.low, s.high);
  if (s.keep) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) y[t] = masked<L>(y[t], (Ints<L>)load<L>(s.keep + t * L));
  }
  if (s.not_finite) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) zeros[t % 2] += y[t] * 0.0f;
  }
}

// Write zeros after each row, as the layout requires.
template <int L, int V, int T>
MFAC_INLINE void end_rows(float* out) {
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) {
    if (V == 0 ? t + 1 < T : (t + 1) % (V ? V : 1) != 0) continue;
    MFAC_UNROLL
    for (int i = 0; i < kBetweenRows; i += L) store<L>(out + place<L, V>(t) + L + i, Floats<L>{});
  }
}

constexpr int kAhead = 256;  // offsets, and floats
constexpr int kLine = 16;    // of these in a cache line

template <int L, int V, int PART, int T, int CHAINS>
MFAC_INLINE void strip_part(const Strip* given, int64_t group, int block, int part,
                            Floats<L>* zeros) {
  // With many sums: opaque, so that none of it is kept in registers through the inner loop.
  if (PART > 1) asm("" : "+r"(given));
  const Strip& s = *given;
  Floats<L> sum[CHAINS][PART][T];
  int64_t output = group * block + part;
  MFAC_UNROLL
  for (int o = 0; o < PART; ++o) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) {
      if (s.first)
        sum[0][o][t] = broadcast<L>(s.bias[output + o]);
      else
        sum[0][o][t] = output + o < s.outputs
                           ? load<L>(s.sums + (output + o) * s.sums_stride +
                                     place_in<L, V, T>(t, s.sums_back))
                           : Floats<L>{};
      MFAC_UNROLL
      for (int c = 1; c < CHAINS; ++c) sum[c][o][t] = Floats<L>{};
    }
  }
  if (s.residual && !s.last) {
    MFAC_UNROLL
    for (int o = 0; o < PART; ++o) {
      if (PART > 1 && output + o >= s.outputs) break;
      const float* residual = s.residual + (output + o) * s.stride;
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) sum[0][o][t] += load<L>(residual + place_in<L, V, T>(t, s.back));
    }
  }
  int32_t i = s.starts[group];
  const int32_t end = s.starts[group + 1];
  const float* values = s.values + part;
  const int64_t base_back = s.base_back;
  // Weights come from beyond the second cache: each is read once a tile. Single weights are limited
  // by loads, whose place prefetches take: each cache line is prefetched once.
  if (PART == 1) {
    int32_t ahead = i;
    do {
      __builtin_prefetch(s.offsets + ahead + kAhead);
      __builtin_prefetch(values + ahead + kAhead);
      ahead += kLine;
    } while (ahead < end);
  }
  for (; i + CHAINS <= end; i += CHAINS) {
    if (PART > 1) {
      __builtin_prefetch(s.offsets + i + kAhead);
      __builtin_prefetch(values + int64_t{i + kAhead / 4} * block);
    }
    int64_t offsets[CHAINS];
    if (CHAINS % 2 == 0) {
      MFAC_UNROLL
      for (int c = 0; c < CHAINS; c += 2) {
        int64_t pair;  // one load for two offsets
        __builtin_memcpy(&pair, s.offsets + i + c, 8);
        offsets[c] = static_cast<int32_t>(pair);
        offsets[c + 1] = pair >> 32;
      }
    } else {
      MFAC_UNROLL
      for (int c = 0; c < CHAINS; ++c) offsets[c] = s.offsets[i + c];
    }
    MFAC_UNROLL
    for (int c = 0; c < CHAINS; ++c) {
      const char* from = s.base + offsets[c];
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) {
        const Floats<L> x = load<L>(from + place_in<L, V, T>(t, base_back) * 4);
        MFAC_UNROLL
        for (int o = 0; o < PART; ++o) sum[c][o][t] += values[int64_t{i + c} * block + o] * x;
      }
    }
  }
  if (CHAINS > 1) {
    for (; i < end; ++i) {
      const char* from = s.base + s.offsets[i];
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) {
        const Floats<L> x = load<L>(from + place_in<L, V, T>(t, base_back) * 4);
        MFAC_UNROLL
        for (int o = 0; o < PART; ++o) sum[0][o][t] += values[int64_t{i} * block + o] * x;
      }
    }
  }
  for (int c = 1; c < CHAINS; ++c) {
    MFAC_UNROLL
    for (int o = 0; o < PART; ++o) {
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) sum[0][o][t] += sum[c][o][t];
    }
  }
  if (PART > 1) asm("" : "+r"(output));  // the same for the addresses of the outputs
  MFAC_UNROLL
  for (int o = 0; o < PART; ++o) {
    if (PART > 1 && output + o >= s.outputs) break;
    const int64_t at = (output + o) * s.stride;
    float* out = s.out + at;
    if (s.last) finish<L, V, T>(s, at, sum[0][o], zeros);
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) store<L>(out + place_in<L, V, T>(t, s.back), sum[0][o][t]);
    if (s.last && s.ends_rows) end_rows<L, V, T>(out);
  }
}

template <int L, int V, int BLOCK, int PART, int T>
void strip(const Strip& given) {
  Strip s = given;  // a local copy, which stores cannot alias
  if (s.sums == nullptr)
    s.sums = s.out, s.sums_stride = s.stride, s.sums_back = s.back;
  else if (!s.last)
    s.out = s.sums, s.stride = s.sums_stride, s.back = s.sums_back;
  constexpr int kChains = PART * T >= 6 ? 1 : PART * T >= 3 ? 2 : 4;
  Floats<L> zeros[2] = {};  // stay zero as long as all values are finite
  for (int64_t group = s.group_begin; group < s.group_end; ++group)
    for (int part = 0; part < BLOCK; part += PART)
      strip_part<L, V, PART, T, kChains>(&s, group, BLOCK, part, zeros);
  if (s.not_finite && !all_zero<L>(zeros[0] + zeros[1])) *s.not_finite = true;
}

// Fill in the strips of T, T + step, ... up to LONGEST vectors.
template <int L, int V, int BLOCK, int PART, int T, int LONGEST, bool FITS = (T <= LONGEST)>
struct FillStrips {
  static void into(StripFunction* run) {
    run[T] = strip<L, V, BLOCK, PART, T>;
    FillStrips<L, V, BLOCK, PART, T + (V ? V : 1), LONGEST>::into(run);
  }
};
template <int L, int V, int BLOCK, int PART, int T, int LONGEST>
struct FillStrips<L, V, BLOCK, PART, T, LONGEST, false> {
  static void into(StripFunction*) {}
};

// With 32 registers 24 hold accumulators, with 16 registers 12 (of four outputs 2 vectors: 8).
// V: vectors in a row, 0 where the vectors of a strip are contiguous.
template <int L, int V>
StripTable strip_table() {
  StripTable table = {};
  table.lanes = L;
#if MFAC_REGISTERS == 32
  constexpr int kLongest[kBlockSizes] = {16, 6, 3, 1};
  constexpr int kLargestPart = 16;
#else
  constexpr int kLongest[kBlockSizes] = {12, 2, 1, 1};
  constexpr int kLargestPart = 8;
#endif
  constexpr int kFirst = V ? V : 1;
  for (int i = 0; i < kBlockSizes; ++i) table.longest[i] = kLongest[i];
  FillStrips<L, V, 1, 1, kFirst, kLongest[0]>::into(table.run[0]);
  FillStrips<L, V, 4, 4, kFirst, kLongest[1]>::into(table.run[1]);
  FillStrips<L, V, 8, 8, kFirst, kLongest[2]>::into(table.run[2]);
  FillStrips<L, V, 16, kLargestPart, kFirst, kLongest[3]>::into(table.run[3]);
  return table;
}
