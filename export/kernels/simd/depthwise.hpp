// A 3x3 convolution of one channel with itself only: each input row is copied once, with its padding,
// into a ring of three, so that every tap is a shift.

// One output row. Each vector reads the nine taps; the last one overlaps the one before.
template <int L, int STRIDE>
MFAC_INLINE void depthwise_row(const Depthwise& d, const float* const* rows, int64_t phase,
                               float* to, const float* residual) {
  for (int64_t next = 0; next < d.to_width; next += L) {
    const int64_t i = next + L <= d.to_width ? next : d.to_width - L;
    Floats<L> sum = broadcast<L>(d.bias);
    MFAC_UNROLL
    for (int y = 0; y < 3; ++y) {
      // With a stride of 2 even positions come first, and odd ones a phase later.
      const float* row = rows[y] + i;
      sum += load<L>(row) * d.weights[3 * y];
      sum += load<L>(STRIDE == 1 ? row + 1 : row + phase) * d.weights[3 * y + 1];
      sum += load<L>(STRIDE == 1 ? row + 2 : row + 1) * d.weights[3 * y + 2];
    }
    if (residual) sum += load<L>(residual + i);
    store<L>(to + i, clip<L>(sum, d.low, d.high));
  }
}

// Copy positions from, from + step, ... of a row into a phase of it: `count` at most.
MFAC_INLINE void copy_phase(const Depthwise& d, const float* row, int64_t from, float* to,
                            int64_t length) {
  const int64_t before = from < 0 ? (-from + d.stride - 1) / d.stride : 0;
  const int64_t first = from + before * d.stride;
  int64_t count = first < d.width ? (d.width - first - 1) / d.stride + 1 : 0;
  if (count > length - before) count = length - before;
  if (count <= 0) return (void)__builtin_memset(to, 0, static_cast<size_t>(length) * 4);
  copy_rows({row + first, 0, to, length, 1, d.stride, before, count});
}

template <int L, int STRIDE>
MFAC_INLINE void depthwise_rows(const Depthwise& d) {
  const int64_t phase = d.to_width + 2;
  const int64_t length = phase * STRIDE;
  float* const zeros = d.rows + 3 * length;
  __builtin_memset(zeros, 0, static_cast<size_t>(length) * 4);
  int64_t copied = 0;  // rows of the input
  for (int64_t y = 0; y < d.to_height; ++y) {
    const float* rows[3];
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t row = y * STRIDE - d.top + tap;
      const bool inside = row >= 0 && row < d.height;
      float* const to = inside ? d.rows + row % 3 * length : zeros;
      rows[tap] = to;
      if (!inside || row < copied) continue;
      for (int64_t p = 0; p < STRIDE; ++p)
        copy_phase(d, d.from + row * d.width, p - d.left, to + p * phase, phase);
      copied = row + 1;
    }
    const int64_t at = y * d.to_width;
    depthwise_row<L, STRIDE>(d, rows, phase, d.to + at, d.residual ? d.residual + at : nullptr);
  }
}

template <int L>
MFAC_INLINE void depthwise_of(const Depthwise& d) {
  d.stride == 1 ? depthwise_rows<L, 1>(d) : depthwise_rows<L, 2>(d);
}

void depthwise(const Depthwise& given) {
  const Depthwise d = given;  // a local copy, which stores cannot alias
  if (d.to_width >= MFAC_WIDE) return depthwise_of<MFAC_WIDE>(d);
  if (d.to_width >= MFAC_NARROW) return depthwise_of<MFAC_NARROW>(d);
  d.to_width >= 4 ? depthwise_of<4>(d) : depthwise_of<1>(d);
}
