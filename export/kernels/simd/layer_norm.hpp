// Layer normalisation. A row is read three times, from the first cache after the first.

// Half of the lanes is added to the other half, so that few additions wait for each other.
template <int L>
MFAC_INLINE float lane_sum(Floats<L> value) {
  if constexpr (L == 1) {
    return value[0];
  } else {
    Floats<L / 2> low, high;
    __builtin_memcpy(&low, &value, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
    return lane_sum<L / 2>(low + high);
  }
}

// Call use(vector, position, chain, fresh) for a row of at least L values. The last vector ends
// with the row and overlaps the one before: `fresh` are its lanes that were not in that one, all of
// them in the other vectors. `chain` cycles, so that additions to its sums need not wait for each
// other.
template <int L, class Use>
MFAC_INLINE void each_vector(const float* x, int64_t count, const Use& use) {
  constexpr int kChains = 4;
  const Ints<L> all = Ints<L>{} - 1;
  int64_t i = 0;
  for (; i + kChains * L <= count; i += kChains * L) {
    MFAC_UNROLL
    for (int chain = 0; chain < kChains; ++chain)
      use(load<L>(x + i + chain * L), i + chain * L, chain, all);
  }
  for (; i + L <= count; i += L) use(load<L>(x + i), i, 0, all);
  if (i == count) return;
  Ints<L> lanes;
  for (int lane = 0; lane < L; ++lane) lanes[lane] = lane;
  const Ints<L> fresh = lanes >= static_cast<int32_t>(L - (count - i));
  use(load<L>(x + count - L), count - L, 1, fresh);
}

template <int L>
MFAC_INLINE float sum_of_chains(const Floats<L>* sums) {
  return lane_sum<L>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <int L>
MFAC_INLINE float mean_of(const float* x, int64_t count, float share) {
  Floats<L> sums[4] = {};
  each_vector<L>(x, count, [&](Floats<L> v, int64_t, int chain, Ints<L> fresh) {
    sums[chain] += masked<L>(v, fresh);
  });
  return sum_of_chains<L>(sums) * share;
}

struct Deviation {
  float rest;     // what rounding has left out of the mean
  float inverse;  // 1 / sqrt(variance + epsilon)
};

template <int L>
MFAC_INLINE Deviation deviation_from(float mean, const float* x, int64_t count, float share,
                                     float epsilon) {
  Floats<L> rests[4] = {}, squares[4] = {};
  each_vector<L>(x, count, [&](Floats<L> v, int64_t, int chain, Ints<L> fresh) {
    const Floats<L> centred = masked<L>(v - mean, fresh);
    rests[chain] += centred;
    squares[chain] += centred * centred;
  });
  Deviation found;
  found.rest = sum_of_chains<L>(rests) * share;
  float variance = sum_of_chains<L>(squares) * share - found.rest * found.rest;
  variance = variance < 0 ? 0 : variance;  // by rounding
  // NaN if the variance is beyond float32, where its inverse would be 0.
  found.inverse = 1.0f / __builtin_sqrtf(variance + epsilon) + variance * 0.0f;
  return found;
}

template <int L>
MFAC_INLINE void round_to_bytes(const NormRows& r, int64_t at, Floats<L> z) {
  // Unlike that of clip, this comparison takes NaN to the least byte, as ONNX Runtime does.
  const Floats<L> least = broadcast<L>(r.how.low), most = broadcast<L>(r.how.high);
  z = z > least ? z : least;
  z = z > most ? most : z;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Floats<L> shifted = z + 12582912.0f;
  store_low_bytes(r.bytes + at, (Ints<L>)shifted + r.how.zero_point);
  if (r.y) store<L>(r.y + at, (shifted - 12582912.0f) * r.step);
}

template <int L, bool BYTES>
MFAC_INLINE void layer_norm_of(const NormRows& given) {
  const NormRows r = given;  // a local copy, which stores cannot alias
  const float share = 1.0f / static_cast<float>(r.count);
  // The mean of the next row is found while this row's deviation is being computed from its sums.
  float mean = r.rows > 0 ? mean_of<L>(r.x, r.count, share) : 0;
  for (int64_t row = 0; row < r.rows; ++row) {
    const int64_t start = row * r.count;
    const float* x = r.x + start;
    const Deviation d = deviation_from<L>(mean, x, r.count, share, r.epsilon);
    const float next = row + 1 < r.rows ? mean_of<L>(x + r.count, r.count, share) : 0;
    each_vector<L>(x, r.count, [&](Floats<L> v, int64_t i, int, Ints<L>) {
      const Floats<L> z =
          (v - mean - d.rest) * (d.inverse * load<L>(r.scale + i)) + load<L>(r.bias + i);
      if (BYTES)
        round_to_bytes<L>(r, start + i, z);
      else
        store<L>(r.y + start + i, z);
    });
    mean = next;
  }
}

template <bool BYTES>
void layer_norm_in(const NormRows& rows) {
  if (rows.count >= MFAC_WIDE) return layer_norm_of<MFAC_WIDE, BYTES>(rows);
  if (rows.count >= MFAC_NARROW) return layer_norm_of<MFAC_NARROW, BYTES>(rows);
  return rows.count >= 4 ? layer_norm_of<4, BYTES>(rows) : layer_norm_of<1, BYTES>(rows);
}

void layer_norm(const NormRows& rows) {
  rows.bytes ? layer_norm_in<true>(rows) : layer_norm_in<false>(rows);
}
