// Rows to columns and back, one square of L x L at a time.

// One stage of the perfect shuffle: log2(L) of them transpose a square.
template <int L>
struct Interleave;
template <>
struct Interleave<4> {
  static MFAC_INLINE Floats<4> low(Floats<4> a, Floats<4> b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  }
  static MFAC_INLINE Floats<4> high(Floats<4> a, Floats<4> b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  }
};
#if MFAC_WIDE >= 8
template <>
struct Interleave<8> {
  static MFAC_INLINE Floats<8> low(Floats<8> a, Floats<8> b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  }
  static MFAC_INLINE Floats<8> high(Floats<8> a, Floats<8> b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
};
#endif
#if MFAC_WIDE >= 16
template <>
struct Interleave<16> {
  static MFAC_INLINE Floats<16> low(Floats<16> a, Floats<16> b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  static MFAC_INLINE Floats<16> high(Floats<16> a, Floats<16> b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
  }
};
#endif

template <int L>
MFAC_INLINE void transpose(Floats<L>* square) {
  MFAC_UNROLL
  for (int stage = 1; stage < L; stage *= 2) {
    Floats<L> next[L];
    MFAC_UNROLL
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = Interleave<L>::low(square[i], square[i + L / 2]);
      next[2 * i + 1] = Interleave<L>::high(square[i], square[i + L / 2]);
    }
    MFAC_UNROLL
    for (int i = 0; i < L; ++i) square[i] = next[i];
  }
}

template <int L>
MFAC_INLINE Floats<L> load_some(const float* from, int64_t count) {
  float all[L] = {};
  __builtin_memcpy(all, from, static_cast<size_t>(count) * 4);
  return load<L>(all);
}

template <int L>
MFAC_INLINE void store_some(float* to, Floats<L> value, int64_t count) {
  __builtin_memcpy(to, &value, static_cast<size_t>(count) * 4);
}

// At most L rows. `zeros` stay zero as long as all values are finite.
template <int L>
MFAC_INLINE void strip_to_columns(const float* rows, int64_t row_stride, int64_t count,
                                  int64_t width, float* columns, int64_t column_stride,
                                  Floats<L>* zeros) {
  for (int64_t k = 0; k < width; k += L) {
    const int64_t some = width - k < L ? width - k : L;
    Floats<L> square[L];
    if (count >= L && some == L) {
      MFAC_UNROLL
      for (int r = 0; r < L; ++r) square[r] = load<L>(rows + r * row_stride + k);
    } else {
      for (int r = 0; r < L; ++r)
        square[r] = r < count ? load_some<L>(rows + r * row_stride + k, some) : Floats<L>{};
    }
    MFAC_UNROLL
    for (int r = 0; r < L; ++r) zeros[r % 2] += square[r] * 0.0f;
    transpose<L>(square);
    for (int i = 0; i < some; ++i) store<L>(columns + (k + i) * column_stride, square[i]);
  }
}

template <int L>
bool to_columns(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* columns,
                int64_t column_stride) {
  Floats<L> zeros[2] = {};
  for (int64_t row = 0; row < count; row += L)
    strip_to_columns<L>(rows + row * row_stride, row_stride, count - row, width, columns + row,
                        column_stride, zeros);
  return all_zero<L>(zeros[0] + zeros[1]);
}

template <int L>
MFAC_INLINE Floats<L> unchanged(Floats<L> value) {
  return value;
}

// At most L rows.
template <int L, Floats<L> (*LAST)(Floats<L>)>
MFAC_INLINE void strip_to_rows(const float* columns, int64_t column_stride, int64_t count,
                               int64_t width, float* rows, const float* residual,
                               int64_t row_stride, float low, float high) {
  for (int64_t k = 0; k < width; k += L) {
    const int64_t some = width - k < L ? width - k : L;
    Floats<L> square[L];
    for (int i = 0; i < L; ++i)
      square[i] = i < some ? load<L>(columns + (k + i) * column_stride) : Floats<L>{};
    transpose<L>(square);
    for (int r = 0; r < L; ++r) {
      if (r >= count) break;
      float* to = rows + r * row_stride + k;
      Floats<L> y = square[r];
      if (some == L) {
        if (residual) y += load<L>(residual + r * row_stride + k);
        store<L>(to, LAST(clip<L>(y, low, high)));
      } else {
        if (residual) y += load_some<L>(residual + r * row_stride + k, some);
        store_some<L>(to, LAST(clip<L>(y, low, high)), some);
      }
    }
  }
}

// LAST: applied to each value after the clip.
template <int L, Floats<L> (*LAST)(Floats<L>) = unchanged<L>>
void to_rows(const float* columns, int64_t column_stride, int64_t count, int64_t width, float* rows,
             const float* residual, int64_t row_stride, float low, float high) {
  for (int64_t row = 0; row < count; row += L) {
    const int64_t at = row * row_stride;
    strip_to_rows<L, LAST>(columns + row, column_stride, count - row, width, rows + at,
                           residual ? residual + at : nullptr, row_stride, low, high);
  }
}
