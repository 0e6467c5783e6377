// Attention: products of a head's matrices with columns of rows, and the softmax between them.

// Sums of PART outputs for T vectors of columns.
template <int L, int PART, int T>
MFAC_INLINE void product_part(const Product& p, const float* weights, float* out,
                              Floats<L>* largest) {
  Floats<L> sum[PART][T] = {};
  const float* x = p.columns;
  for (int64_t k = 0; k < p.inputs; ++k, x += p.height, weights += p.input_stride) {
    Floats<L> columns[T];
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) columns[t] = load<L>(x + t * L);
    MFAC_UNROLL
    for (int o = 0; o < PART; ++o) {
      const float weight = weights[o * p.output_stride];
      MFAC_UNROLL
      for (int t = 0; t < T; ++t) sum[o][t] += weight * columns[t];
    }
  }
  MFAC_UNROLL
  for (int o = 0; o < PART; ++o) {
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) {
      store<L>(out + o * p.height + t * L, sum[o][t]);
      largest[t] = sum[o][t] > largest[t] ? sum[o][t] : largest[t];
    }
  }
}

// The last outputs, fewer than PART.
template <int L, int PART, int T>
MFAC_INLINE void last_products(const Product& p, int64_t first, Floats<L>* largest) {
  if constexpr (PART > 1) {
    if (p.outputs - first < PART - 1) return last_products<L, PART - 1, T>(p, first, largest);
    product_part<L, PART - 1, T>(p, p.weights + first * p.output_stride, p.out + first * p.height,
                                 largest);
  }
}

template <int L, int T>
void product(const Product& given) {
  constexpr int kPart = 6;  // with four vectors, 24 of 32 registers; with two, 12 of 16
  const Product p = given;  // a local copy, which stores cannot alias
  Floats<L> largest[T];
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) largest[t] = broadcast<L>(-__builtin_inff());
  int64_t o = 0;
  for (; o + kPart <= p.outputs; o += kPart)
    product_part<L, kPart, T>(p, p.weights + o * p.output_stride, p.out + o * p.height, largest);
  last_products<L, kPart, T>(p, o, largest);
  if (p.largest == nullptr) return;
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) store<L>(p.largest + t * L, largest[t]);
}

// The scores of a key: scaled, and with the masks.
template <int L, int T>
MFAC_INLINE void masked_scores(const Scores& s, int64_t key, Floats<L>* scores) {
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) {
    scores[t] = load<L>(s.scores + key * s.height + t * L) * s.scale;
    if (s.key_mask) scores[t] += s.key_mask[key];
    if (s.mask) scores[t] += load<L>(s.mask + key * s.height + t * L);
  }
}

// Write zeros to columns whose sum is NaN: divided by it, all of their values would be.
template <int L, int T>
MFAC_INLINE void clear_not_numbers(const Scores& s, Floats<L>* sum) {
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) {
    const Ints<L> numbers = sum[t] == sum[t];
    if (all_zero<L>((Floats<L>)(~numbers & (Ints<L>)broadcast<L>(1.0f)))) continue;
    for (int64_t key = 0; key < s.keys; ++key) {
      float* scores = s.scores + key * s.height + t * L;
      store<L>(scores, masked<L>(load<L>(scores), numbers));
    }
    sum[t] = numbers ? sum[t] : broadcast<L>(1.0f);
  }
}

// A NaN is never the largest, and makes its column's sum NaN. The largest is subtracted before the
// scale is applied: the difference of two large products, of which one is rounded, is anything.
template <int L, int T>
void exponentials(const Scores& given) {
  const Scores s = given;  // a local copy, which stores cannot alias
  const bool masked = s.key_mask || s.mask;
  Floats<L> largest[T], sum[T] = {};
  MFAC_UNROLL
  for (int t = 0; t < T; ++t)
    largest[t] = masked ? broadcast<L>(-__builtin_inff()) : load<L>(s.largest + t * L);
  for (int64_t key = 0; masked && key < s.keys; ++key) {
    Floats<L> scores[T];
    masked_scores<L, T>(s, key, scores);
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) {
      store<L>(s.scores + key * s.height + t * L, scores[t]);
      largest[t] = scores[t] > largest[t] ? scores[t] : largest[t];
    }
  }
  const float scale = masked ? 1.0f : s.scale;  // the former have it already
  for (int64_t key = 0; key < s.keys; ++key) {
    float* scores = s.scores + key * s.height;
    MFAC_UNROLL
    for (int t = 0; t < T; ++t) {
      const Floats<L> e = exp_of_negative<L>((load<L>(scores + t * L) - largest[t]) * scale);
      store<L>(scores + t * L, e);
      sum[t] += e;
    }
  }
  if (s.nan_to_zero) clear_not_numbers<L, T>(s, sum);
  MFAC_UNROLL
  for (int t = 0; t < T; ++t) store<L>(s.sums + t * L, sum[t]);
}

template <int L>
void divide_columns(float* values, int64_t rows, int64_t height, const float* divisors) {
  for (int64_t at = 0; at < height; at += L) {
    const Floats<L> factor = 1.0f / load<L>(divisors + at);
    for (int64_t r = 0; r < rows; ++r) {
      float* value = values + r * height + at;
      store<L>(value, load<L>(value) * factor);
    }
  }
}

template <int L, int T>
AttentionKernels::Width attention_width() {
  return {product<L, T>, exponentials<L, T>};
}

template <int L>
AttentionKernels attention_kernels() {
  AttentionKernels kernels = {};
  kernels.width[1] = attention_width<L, 1>();
  kernels.width[2] = attention_width<L, 2>();
#if MFAC_REGISTERS == 32
  kernels.width[3] = attention_width<L, 3>();
  kernels.width[4] = attention_width<L, 4>();
  kernels.vectors = 4;
#else
  kernels.vectors = 2;
#endif
  kernels.divide_columns = divide_columns<L>;
  return kernels;
}
