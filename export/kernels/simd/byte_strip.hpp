// Steps of four inputs and four outputs times a strip of four vectors of positions.

constexpr int kStepsAhead = 32;

// The sums of vectors FIRST to FIRST + COUNT - 1 of four outputs.
template <int L, int FIRST, int COUNT>
MFAC_INLINE void byte_sums(const ByteStrip& s, int64_t group, Ints<L> (*sum)[4]) {
  MFAC_UNROLL
  for (int o = 0; o < kBlockOutputs; ++o) {
    MFAC_UNROLL
    for (int t = 0; t < COUNT; ++t)
      sum[o][FIRST + t] = broadcast_int<L>(s.begin[group * kBlockOutputs + o]);
  }
  const ByteStep* const end = s.steps + s.starts[group + 1];
  for (const ByteStep* step = s.steps + s.starts[group]; step < end; ++step) {
    __builtin_prefetch(step + kStepsAhead);  // from beyond the second cache
    const auto a = load_bytes<L>(s.base + step->offsets[0]);
    const auto b = load_bytes<L>(s.base + step->offsets[1]);
    const auto c = load_bytes<L>(s.base + step->offsets[2]);
    const auto d = load_bytes<L>(s.base + step->offsets[3]);
    Ints<L> x[COUNT];
    if (FIRST == 0) {
      const auto ab = low_bytes(a, b), cd = low_bytes(c, d);
      x[0] = (Ints<L>)low_pairs(ab, cd);
      x[1] = (Ints<L>)high_pairs(ab, cd);
    }
    if (FIRST + COUNT == 4) {
      const auto ab = high_bytes(a, b), cd = high_bytes(c, d);
      x[COUNT - 2] = (Ints<L>)low_pairs(ab, cd);
      x[COUNT - 1] = (Ints<L>)high_pairs(ab, cd);
    }
    MFAC_UNROLL
    for (int o = 0; o < kBlockOutputs; ++o) {
      const QuadWeights<L> w(broadcast_int<L>(step->cells[o]));
      MFAC_UNROLL
      for (int t = 0; t < COUNT; ++t) add_products(sum[o][FIRST + t], x[t], w);
    }
  }
}

enum class Stored { kSums, kBounded, kAny, kAdded };

template <int L, Stored STORED>
MFAC_INLINE void byte_groups(const ByteStrip& s) {
  for (int64_t group = 0; group < s.groups; ++group) {
    Ints<L> sum[kBlockOutputs][4];
#if MFAC_REGISTERS == 32
    byte_sums<L, 0, 4>(s, group, sum);
#else
    byte_sums<L, 0, 2>(s, group, sum);
    byte_sums<L, 2, 2>(s, group, sum);
#endif
    MFAC_UNROLL
    for (int o = 0; o < kBlockOutputs; ++o) {
      const int64_t output = group * kBlockOutputs + o;
      if (output >= s.outputs) break;
      const int64_t at = output * s.out_stride;
      if constexpr (STORED == Stored::kSums)
        store_in_order<L>(s.sums + at, sum[o]);
      else if constexpr (STORED == Stored::kAdded)
        store_added(s.out + at, sum[o], s.scales[output], s.requantise,
                    s.residual + output * s.residual_stride, s.addition);
      else
        store_packed<STORED == Stored::kBounded>(s.out + at, sum[o], s.scales[output],
                                                 s.requantise);
    }
  }
}

template <int L>
void byte_strip(const ByteStrip& given) {
  const ByteStrip s = given;  // a local copy, which stores cannot alias
  if (s.sums) return byte_groups<L, Stored::kSums>(s);
  if (s.residual) return byte_groups<L, Stored::kAdded>(s);
  s.requantise.bounded ? byte_groups<L, Stored::kBounded>(s) : byte_groups<L, Stored::kAny>(s);
}

MFAC_INLINE void add_width(ByteStripTable& table, int64_t positions, ByteStripFunction run) {
  table.positions[table.count] = positions;
  table.run[table.count++] = run;
}

ByteStripTable byte_strip_table() {
  ByteStripTable table = {};
#if MFAC_WIDE >= 16
  add_width(table, 64, byte_strip<16>);
#endif
#if MFAC_WIDE >= 8
  add_width(table, 32, byte_strip<8>);
#endif
  add_width(table, 16, byte_strip<4>);
  return table;
}
