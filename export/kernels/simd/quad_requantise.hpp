// Requantises 32-bit sums to unsigned bytes, as ONNX Runtime rounds them: in float32, ties to even.

template <int L>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(L)));
};

template <int L>
MFAC_INLINE void store_rounded(uint8_t* to, Floats<L> scaled, const Requantise& how) {
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Ints<L> rounded =
      (Ints<L>)(clip<L>(scaled, how.low, how.high) + 12582912.0f) + how.zero_point;
  const auto bytes = __builtin_convertvector(rounded, typename BytesOf<L>::type);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

template <int L>
MFAC_INLINE void store_requantised(uint8_t* to, Ints<L> sums, Floats<L> scales,
                                   const Requantise& how) {
  store_rounded<L>(to, __builtin_convertvector(sums, Floats<L>) * scales, how);
}

template <int L>
void requantise_all(const int32_t* sums, const float* scales, int64_t count, Requantise how,
                    uint8_t* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    store_requantised<L>(out + i, load_ints<L>(sums + i), load<L>(scales + i), how);
  if (i == count) return;
  const size_t rest = static_cast<size_t>(count - i);
  Ints<L> last = {};
  Floats<L> scale = {};
  __builtin_memcpy(&last, sums + i, rest * 4);
  __builtin_memcpy(&scale, scales + i, rest * 4);
  uint8_t bytes[L];
  store_requantised<L>(bytes, last, scale, how);
  __builtin_memcpy(out + i, bytes, rest);
}
