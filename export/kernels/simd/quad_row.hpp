// One row of activations: four stored quads of an output are the lanes, the inputs are looked up.

MFAC_INLINE Cell cell_at(const char* from) {
  Cell cell;
  __builtin_memcpy(&cell, from, sizeof cell);
  return cell;
}

void quad_row(const QuadStrip& given) {
  const QuadStrip s = given;
  constexpr int kChains = 4;
  for (int64_t output = 0; output < s.outputs; ++output) {
    Ints<4> sum[kChains] = {};
    int32_t i = s.starts[output];
    const int32_t end = s.starts[output + 1];
    auto add_four = [&](Ints<4>& to) {
      const int32_t* at = s.offsets + i;
      const Ints<4> x = {cell_at(s.base + at[0]), cell_at(s.base + at[1]), cell_at(s.base + at[2]),
                         cell_at(s.base + at[3])};
      add_products(to, x, QuadWeights<4>(load_ints<4>(s.values + i)));
      i += 4;
    };
    while (i + 4 * kChains <= end) {
      MFAC_UNROLL
      for (int c = 0; c < kChains; ++c) add_four(sum[c]);
    }
    while (i + 4 <= end) add_four(sum[0]);
    for (; i < end; ++i) {
      const Ints<4> x = {cell_at(s.base + s.offsets[i])};
      add_products(sum[1], x, QuadWeights<4>(Ints<4>{s.values[i]}));
    }
    const Ints<4> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    s.sums[output] = s.begin[output] + ((all[0] + all[1]) + (all[2] + all[3]));
  }
}
