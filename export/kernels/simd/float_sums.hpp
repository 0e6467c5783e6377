// Sums of quantised layers that become floats, and floats that become bytes.

// out[i] = sums[i] * scale + bias, in place as well.
template <int L>
void scale_sums(const int32_t* sums, int64_t count, float scale, float bias, float* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    store<L>(out + i, __builtin_convertvector(load_ints<L>(sums + i), Floats<L>) * scale + bias);
  for (; i < count; ++i) out[i] = static_cast<float>(sums[i]) * scale + bias;
}

// out[i] = sums[i] * scales[i] + bias[i]
template <int L>
void scale_row(const int32_t* sums, const float* scales, const float* bias, int64_t count,
               float* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    store<L>(out + i, __builtin_convertvector(load_ints<L>(sums + i), Floats<L>) *
                              load<L>(scales + i) +
                          load<L>(bias + i));
  for (; i < count; ++i) out[i] = static_cast<float>(sums[i]) * scales[i] + bias[i];
}

// out[i] = round(clip(values[i] / scale)) + zero point, ties to even. No value is NaN.
template <int L>
void quantise_all(const float* values, int64_t count, float scale, const Requantise& given,
                  uint8_t* out) {
  const Requantise how = given;  // a local copy, which stores cannot alias
  const Floats<L> divisor = broadcast<L>(scale);
  int64_t i = 0;
  for (; i + L <= count; i += L) store_rounded<L>(out + i, load<L>(values + i) / divisor, how);
  if (i == count) return;
  uint8_t bytes[L];
  store_rounded<L>(bytes, load_some<L>(values + i, count - i) / divisor, how);
  __builtin_memcpy(out + i, bytes, static_cast<size_t>(count - i));
}
