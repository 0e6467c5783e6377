// GELU and the detection of values that are not finite.

// e^x for x <= 0, to two units in the last place: 2^n * p(r), |r| <= ln(2)/2, p by Taylor's series.
template <int L>
MFAC_INLINE Floats<L> exp_of_negative(Floats<L> x) {
  const Floats<L> least = broadcast<L>(-87.0f);
  const Ints<L> vanishes = x < least;
  const Floats<L> bounded = vanishes ? least : x;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Floats<L> shift = broadcast<L>(12582912.0f);
  const Floats<L> shifted = bounded * 1.44269504f + shift;
  const Floats<L> n = shifted - shift;
  const Floats<L> r = (bounded - n * 0.693145751953125f) - n * 1.42860677e-6f;
  Floats<L> p = broadcast<L>(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints<L> exponent = ((Ints<L>)shifted + 127) << 23;
  return vanishes ? Floats<L>{} : p * (Floats<L>)exponent;
}

// x * Phi(x). Phi(x) - 1/2 = x P(x^2) / Q(x^2) for |x| < 5.3, a minimax fit of x^2 times the
// quotient (error 1.3e-8), so that rounding to float is the larger error. Beyond, Phi is 0 or 1.
template <int L>
MFAC_INLINE Floats<L> gelu_erf_of(Floats<L> x) {
  constexpr float kEnd = 5.3f;
  const Floats<L> z = clip<L>(x, -kEnd, kEnd);
  const Floats<L> s = z * z;
  Floats<L> p = broadcast<L>(2.3393452508457813e-08f);
  p = p * s + 6.4657874645490665e-06f;
  p = p * s + 0.00017019262304529548f;
  p = p * s + 0.004686704371124506f;
  p = p * s + 0.03388083353638649f;
  p = p * s + 0.39894211292266846f;
  Floats<L> q = broadcast<L>(1.2246408687133226e-06f);
  q = q * s + 7.463633664883673e-05f;
  q = q * s + 0.0018915353575721383f;
  q = q * s + 0.028682323172688484f;
  q = q * s + 0.2515915632247925f;
  q = q * s + 1.0f;
  const Floats<L> phi = 0.5f + z * (p / q);
  return x * (x <= -kEnd ? Floats<L>{} : phi);
}

// x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3), written with e of a negative number.
template <int L>
MFAC_INLINE Floats<L> gelu_tanh_of(Floats<L> x) {
  const Floats<L> u = 0.79788456f * (x + 0.044715f * x * x * x);
  const Floats<L> e = exp_of_negative<L>(-2.0f * (u < 0.0f ? -u : u));
  return x * (u < 0.0f ? e : broadcast<L>(1.0f)) / (1.0f + e);
}

template <int L, Floats<L> (*FUNCTION)(Floats<L>)>
void each(float* values, int64_t count) {
  int64_t i = 0;
  for (; i + L <= count; i += L) store<L>(values + i, FUNCTION(load<L>(values + i)));
  if (i < count)
    store_some<L>(values + i, FUNCTION(load_some<L>(values + i, count - i)), count - i);
}

// Add 0 for each finite value, and NaN for the others: x * 0. Of at least L values the last vector
// ends with them, and overlaps the one before.
template <int L>
MFAC_INLINE void add_zeros(const float* values, int64_t count, Floats<L>* sums) {
  if (count > 0 && count < L) {
    sums[0] += load_some<L>(values, count) * 0.0f;
    return;
  }
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    MFAC_UNROLL
    for (int c = 0; c < 4; ++c) sums[c] += load<L>(values + i + c * L) * 0.0f;
  }
  for (; i < count; i += L)
    sums[0] += load<L>(values + (i + L <= count ? i : count - L)) * 0.0f;
}

template <int L>
bool rows_finite(const float* from, int64_t stride, int64_t rows, int64_t count) {
  Floats<L> sums[4] = {};
  for (int64_t r = 0; r < rows; ++r) add_zeros<L>(from + r * stride, count, sums);
  return all_zero<L>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <int L>
bool all_finite(const float* values, int64_t count) {
  return rows_finite<L>(values, count, 1, count);
}

// Rows of at least L: the last vector of each ends with the row, and overlaps the one before. It is
// read first, since the residual may be what is written.
template <int L>
MFAC_INLINE bool clip_rows_of(const RowClip& c) {
  Floats<L> zeros = {};
  const auto sum = [&](const float* from, const float* residual) {
    Floats<L> y = load<L>(from);
    if (residual) y += load<L>(residual);
    y = clip<L>(y, c.low, c.high);
    zeros += y * 0.0f;
    return y;
  };
  const int64_t end = c.count - L;
  for (int64_t r = 0; r < c.rows; ++r) {
    const float* from = c.from + r * c.from_stride;
    const float* residual = c.residual ? c.residual + r * c.residual_stride : nullptr;
    float* to = c.to + r * c.to_stride;
    const Floats<L> last = sum(from + end, residual ? residual + end : nullptr);
    for (int64_t i = 0; i < end; i += L)
      store<L>(to + i, sum(from + i, residual ? residual + i : nullptr));
    store<L>(to + end, last);
    for (int64_t k = 0; k < c.after; ++k) to[c.count + k] = 0.0f;
  }
  return all_zero<L>(zeros);
}

bool clip_rows(const RowClip& given) {
  const RowClip c = given;  // a local copy, which stores cannot alias
  if (c.count >= MFAC_WIDE) return clip_rows_of<MFAC_WIDE>(c);
  if (c.count >= MFAC_NARROW) return clip_rows_of<MFAC_NARROW>(c);
  return c.count >= 4 ? clip_rows_of<4>(c) : clip_rows_of<1>(c);
}
