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

// x * Phi(x), with erfc by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
template <int L>
MFAC_INLINE Floats<L> gelu_erf_of(Floats<L> x) {
  const Floats<L> z = (x < 0.0f ? -x : x) * 0.70710678f;
  const Floats<L> t = 1.0f / (1.0f + 0.3275911f * z);
  Floats<L> p = broadcast<L>(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats<L> half_tail = 0.5f * p * t * exp_of_negative<L>(-z * z);
  return x * (x < 0.0f ? half_tail : 1.0f - half_tail);
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

// x * 0 is 0 for every finite x and NaN for the others.
template <int L>
bool all_finite(const float* values, int64_t count) {
  Floats<L> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    MFAC_UNROLL
    for (int c = 0; c < 4; ++c) sums[c] += load<L>(values + i + c * L) * 0.0f;
  }
  Floats<L> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (; i < count; i += L) sum += load_some<L>(values + i, count - i < L ? count - i : L) * 0.0f;
  return all_zero<L>(sum);
}

bool clip_all(const float* values, const float* residual, int64_t count, float low, float high,
              float* out) {
  constexpr int L = MFAC_NARROW;
  Floats<L> zeros = {};
  for (int64_t i = 0; i < count; i += L) {
    const int64_t some = count - i < L ? count - i : L;
    const bool all = some == L;
    Floats<L> y = all ? load<L>(values + i) : load_some<L>(values + i, some);
    if (residual) y += all ? load<L>(residual + i) : load_some<L>(residual + i, some);
    y = clip<L>(y, low, high);
    if (all)
      store<L>(out + i, y);
    else
      store_some<L>(out + i, y, some);
    zeros += y * 0.0f;
  }
  return all_zero<L>(zeros);
}
