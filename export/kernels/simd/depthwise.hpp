// Depthwise convolutions of rows as they lie in memory. A tap is a shifted load. Its lanes outside
// the image are set to zero, rows outside of it are read from a row of zeros. Several output rows
// share what they read.

// A channel to read. Positions outside of it are zeros.
struct DepthwiseImage {
  const float* pixels;
  int64_t stride, height, width, top, left;
  const float* zeros;
};

// Every other float of 2 L, from the first on and from the second on. Their order is that of
// `in_order`, which returns it to that of memory.
template <int L>
MFAC_INLINE void load_pairs(const float* from, Floats<L>& even, Floats<L>& odd) {
  const Floats<L> a = load<L>(from), b = load<L>(from + L);
  if constexpr (L == 4) {
    even = __builtin_shufflevector(a, b, 0, 2, 4, 6);
    odd = __builtin_shufflevector(a, b, 1, 3, 5, 7);
  } else if constexpr (L == 8) {
    even = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
    odd = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  } else {
    even =
        __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    odd =
        __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
}
template <int L>
MFAC_INLINE Floats<L> in_order(Floats<L> v) {
  if constexpr (L == 4)
    return v;
  else if constexpr (L == 8)
    return __builtin_shufflevector(v, v, 0, 1, 4, 5, 2, 3, 6, 7);
  else
    return __builtin_shufflevector(v, v, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
}
// The place in memory of a lane.
template <int L, int S>
constexpr int place_of_lane(int lane) {
  return S == 1 ? lane : lane / 4 * 2 + lane % 2 + (lane % 4 >= 2 ? L / 2 : 0);
}

// The number of input rows that R output rows read.
constexpr int rows_read(int R, int K, int S) { return (R - 1) * S + K; }
// The most output rows that are computed at a time. More sums share more loads and wait less for each
// other; weights of 5x5 pixels need the registers themselves, and bytes are converted first, which
// takes longer.
template <class Pixel>
constexpr int most_rows(int K) { return K == 3 && sizeof(Pixel) > 1 ? 8 : 4; }

// What follows the sums: floats are clipped, bytes requantised. Sums of 25 products of bytes are
// exact as floats.
template <int L>
MFAC_INLINE Floats<L> first_sum(const Depthwise<float>& d, int64_t channel) {
  return broadcast<L>(d.bias[channel * d.step]);
}
template <int L>
MFAC_INLINE Floats<L> first_sum(const Depthwise<uint8_t>&, int64_t) {
  return Floats<L>{};
}
template <int L>
MFAC_INLINE void store_sum(const Depthwise<float>& d, int64_t, Floats<L> sum, float* to) {
  store<L>(to, clip<L>(sum, d.low, d.high));
}
template <int L>
MFAC_INLINE void store_sum(const Depthwise<uint8_t>& d, int64_t channel, Floats<L> sum,
                           uint8_t* to) {
  const Ints<L> sums = __builtin_convertvector(sum, Ints<L>) + d.begin[channel * d.step];
  store_requantised<L>(to, sums, broadcast<L>(d.scales[channel * d.step]), d.requantise);
}

// The last vector of a row overlaps the one before; a single one may extend beyond the row.
template <int L>
MFAC_INLINE int64_t first_of_vector(int64_t width, int64_t vector) {
  return width < L || (vector + 1) * L <= width ? vector * L : width - L;
}

// Keep a vector in a register: GCC would load it again for each sum that reads it, and most loads
// cross a cache line. Other processors' registers have other letters.
#if defined(__x86_64__)
#define MFAC_IN_REGISTER(value) asm("" : "+v"(value))
#elif defined(__aarch64__)
#define MFAC_IN_REGISTER(value) asm("" : "+w"(value))
#else
#define MFAC_IN_REGISTER(value)
#endif

// Add tap k of a row of pixels to those of the R sums that read it. Bit k of MASK tells whether
// some of its lanes may lie outside.
template <int L, int K, int S, int R, int MASK>
MFAC_INLINE void add_tap(Floats<L> tap, int row, int k, const float* weights, const Ints<L>* keep,
                         Floats<L>* sum) {
  if (MASK >> k & 1) tap = masked<L>(tap, keep[k]);
  MFAC_IN_REGISTER(tap);
  MFAC_UNROLL
  for (int r = 0; r < R; ++r) {
    const int y = row - r * S;
    if (y >= 0 && y < K) sum[r] += tap * weights[y * K + k];
  }
}

// Add the R sums of one vector of each of R output rows. Bit k of MASK tells whether some lanes of tap
// k may lie outside.
template <class Pixel, int L, int K, int S, int R, int MASK>
MFAC_INLINE void sum_vector(const Depthwise<Pixel>& d, int64_t channel, const float* const* rows,
                            const float* weights, int64_t x, int64_t v, Floats<L>* sum) {
  Ints<L> keep[K];
  MFAC_UNROLL
  for (int k = 0; k < K; ++k) {
    if (!(MASK >> k & 1)) continue;
    keep[k] = (Ints<L>)load<L>(d.edges + v * (K + 1) * L + L + k * L);
    if (K == 3) MFAC_IN_REGISTER(keep[k]);
  }
  MFAC_UNROLL
  for (int r = 0; r < R; ++r) sum[r] = first_sum<L>(d, channel);
  constexpr int kRows = rows_read(R, K, S);
  MFAC_UNROLL
  for (int row = 0; row < kRows; ++row) {
    const float* const from = rows[row] + x * S;
    MFAC_UNROLL
    for (int k = 0; k < K; ++k) {
      if (S == 1) {
        add_tap<L, K, S, R, MASK>(load<L>(from + k), row, k, weights, keep, sum);
        continue;
      }
      if (k > 0 && k % 2 == 0) continue;  // added with the one before
      Floats<L> tap, next;
      load_pairs<L>(from + k, tap, next);
      add_tap<L, K, S, R, MASK>(tap, row, k, weights, keep, sum);
      if (k > 0) add_tap<L, K, S, R, MASK>(next, row, k + 1, weights, keep, sum);
    }
  }
  if (S == 1) return;
  MFAC_UNROLL
  for (int r = 0; r < R; ++r) sum[r] = in_order<L>(sum[r]);
}

// One vector of R output rows. What lies behind a row is overwritten.
template <class Pixel, int L, int K, int S, int R, int MASK>
MFAC_INLINE void depthwise_vector(const Depthwise<Pixel>& d, int64_t channel,
                                  const float* const* rows, const float* weights, Pixel* to,
                                  int64_t v) {
  const int64_t x = first_of_vector<L>(d.to_width, v);
  Floats<L> sum[R];
  sum_vector<Pixel, L, K, S, R, MASK>(d, channel, rows, weights, x, v, sum);
  MFAC_UNROLL
  for (int r = 0; r < R; ++r) store_sum<L>(d, channel, sum[r], to + r * d.to_width + x);
}

// The same at an edge: with masks only where they are needed, in the usual cases.
template <class Pixel, int L, int K, int S, int R>
MFAC_INLINE void depthwise_edge(const Depthwise<Pixel>& d, int64_t channel,
                                const float* const* rows, const float* weights, Pixel* to,
                                int64_t v) {
  constexpr int kAll = (1 << K) - 1, kFirst = 1, kLast = 1 << (K - 1), kBoth = kFirst | kLast;
  const int32_t mask = d.edges[v * (K + 1) * L];
  if (K == 3 && (mask | kFirst) == kFirst)
    depthwise_vector<Pixel, L, K, S, R, K == 3 ? kFirst : kAll>(d, channel, rows, weights, to, v);
  else if (K == 3 && (mask | kLast) == kLast)
    depthwise_vector<Pixel, L, K, S, R, K == 3 ? kLast : kAll>(d, channel, rows, weights, to, v);
  else if (K == 3 && (mask | kBoth) == kBoth)
    depthwise_vector<Pixel, L, K, S, R, K == 3 ? kBoth : kAll>(d, channel, rows, weights, to, v);
  else
    depthwise_vector<Pixel, L, K, S, R, kAll>(d, channel, rows, weights, to, v);
}

// A row that is shorter than a vector, without writing anything behind it.
template <class Pixel, int L, int K, int S>
MFAC_INLINE void depthwise_short_row(const Depthwise<Pixel>& d, int64_t channel,
                                     const float* const* rows, const float* weights, Pixel* to) {
  Floats<L> sum;
  sum_vector<Pixel, L, K, S, 1, (1 << K) - 1>(d, channel, rows, weights, 0, 0, &sum);
  Pixel some[L];
  store_sum<L>(d, channel, sum, some);
  for (int64_t x = 0; x < d.to_width; ++x) to[x] = some[x];
}

// Vectors of a row: those [begin, end) have no lane outside the image.
struct Inner {
  int64_t begin, end, all;
};

// The rows that R output rows read, from row y on.
template <int K, int S, int R>
MFAC_INLINE void find_rows(const DepthwiseImage& image, int64_t y, const float** rows) {
  const int64_t first = y * S - image.top;
  const float* inside = image.pixels + first * image.stride;
  constexpr int kRows = rows_read(R, K, S);
  MFAC_UNROLL
  for (int i = 0; i < kRows; ++i, inside += image.stride)
    rows[i] = (static_cast<uint64_t>(first + i) < static_cast<uint64_t>(image.height)
                   ? inside
                   : image.zeros) -
              image.left;
}

// Output rows of a channel, R at a time. The last ones may be computed twice.
template <class Pixel, int L, int K, int S, int R>
MFAC_INLINE void depthwise_rows(const Depthwise<Pixel>& d, const DepthwiseImage& image,
                                const Inner& inner, int64_t channel, const float* weights) {
  const float* rows[rows_read(R, K, S)];
  for (int64_t next = 0; next < d.to_height; next += R) {
    const int64_t y = next + R <= d.to_height ? next : d.to_height - R;
    find_rows<K, S, R>(image, y, rows);
    Pixel* const to = d.to + (channel * d.to_height + y) * d.to_width;
    for (int64_t v = 0; v < inner.begin; ++v)
      depthwise_edge<Pixel, L, K, S, R>(d, channel, rows, weights, to, v);
    for (int64_t v = inner.begin; v < inner.end; ++v)
      depthwise_vector<Pixel, L, K, S, R, 0>(d, channel, rows, weights, to, v);
    for (int64_t v = inner.end; v < inner.all; ++v)
      depthwise_edge<Pixel, L, K, S, R>(d, channel, rows, weights, to, v);
  }
}

// For each vector of a row: the taps that have lanes outside the image, and for each tap its lanes
// inside.
template <class Pixel, int L, int K, int S>
MFAC_INLINE Inner find_edges(const Depthwise<Pixel>& d, const DepthwiseImage& image) {
  Inner inner{0, 0, (d.to_width + L - 1) / L};
  for (int64_t v = 0; v < inner.all; ++v) {
    int32_t* const edge = d.edges + v * (K + 1) * L;
    edge[0] = 0;
    const int64_t first = first_of_vector<L>(d.to_width, v) * S - image.left;
    const bool whole = first >= 0 && first + (L - 1) * S + K <= image.width;
    for (int k = 0; k < K && !whole; ++k) {
      for (int lane = 0; lane < L; ++lane) {
        const int64_t x = place_of_lane<L, S>(lane);
        const int64_t column = first + x * S + k;
        const bool beyond = first_of_vector<L>(d.to_width, v) + x >= d.to_width;
        const bool inside = (column >= 0 && column < image.width) || beyond;
        edge[L + k * L + lane] = inside ? -1 : 0;
        edge[0] |= inside ? 0 : 1 << k;
      }
    }
    if (edge[0] == 0)
      inner.end = v + 1;
    else if (inner.end == 0)
      inner.begin = v + 1;
  }
  if (inner.end == 0) inner.end = inner.begin;
  return inner;
}

// A channel after which there is no room for the rest of a vector.
template <class Pixel, int L, int K, int S>
MFAC_INLINE void depthwise_short_rows(const Depthwise<Pixel>& d, const DepthwiseImage& image,
                                      int64_t channel, const float* weights) {
  const float* rows[K];
  Pixel* to = d.to + channel * d.to_height * d.to_width;
  for (int64_t y = 0; y < d.to_height; ++y, to += d.to_width) {
    find_rows<K, S, 1>(image, y, rows);
    depthwise_short_row<Pixel, L, K, S>(d, channel, rows, weights, to);
  }
}

// The number of output rows at a time for which the fewest rows are read, of those that have code:
// the largest, one less (images of 7, 14, 28 ... pixels are common), 4 and 1.
template <class Pixel, int K, int S>
MFAC_INLINE int rows_at_a_time(int64_t height) {
  constexpr int kMost = most_rows<Pixel>(K);
  const int choices[] = {1, 4, kMost > 4 ? kMost - 1 : 4, kMost};
  int best = 1;
  int64_t least = height * K;
  for (const int rows : choices) {
    if (rows > height) continue;
    const int64_t read = (height + rows - 1) / rows * rows_read(rows, K, S);
    if (read <= least) best = rows, least = read;
  }
  return best;
}

template <class Pixel, int L, int K, int S>
MFAC_INLINE void depthwise_channel(const Depthwise<Pixel>& d, const DepthwiseImage& image,
                                   const Inner& inner, int rows, int64_t channel) {
  float weights[K * K];  // a local copy, which stores cannot alias
  __builtin_memcpy(weights, d.weights + channel * K * K, sizeof weights);
  const int64_t last_row = ((channel + 1) * d.to_height - 1) * d.to_width;
  if (d.to_width < L && d.end - d.to < last_row + L)
    return depthwise_short_rows<Pixel, L, K, S>(d, image, channel, weights);
  constexpr int kMost = most_rows<Pixel>(K), kLess = kMost > 4 ? kMost - 1 : kMost;
  if (rows == kMost) return depthwise_rows<Pixel, L, K, S, kMost>(d, image, inner, channel, weights);
  if (rows == kLess) return depthwise_rows<Pixel, L, K, S, kLess>(d, image, inner, channel, weights);
  if (rows == 4) return depthwise_rows<Pixel, L, K, S, 4>(d, image, inner, channel, weights);
  depthwise_rows<Pixel, L, K, S, 1>(d, image, inner, channel, weights);
}

template <int L, int K, int S>
MFAC_INLINE void depthwise_channels(const Depthwise<float>& d) {
  DepthwiseImage image{d.from, d.width, d.height, d.width, d.top, d.left,
                       d.zeros + kDepthwiseReach};
  const Inner inner = find_edges<float, L, K, S>(d, image);
  const int rows = rows_at_a_time<float, K, S>(d.to_height);
  for (int64_t channel = 0; channel < d.channels; ++channel) {
    depthwise_channel<float, L, K, S>(d, image, inner, rows, channel);
    image.pixels += d.height * d.width;
  }
}

// L bytes as floats: 4, 8 or 16. (GCC would convert them one by one.)
template <int L>
MFAC_INLINE Floats<L> load_byte_floats(const uint8_t* from) {
#if defined(__AVX512F__)
  if constexpr (L == 16)
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)load_first<16>(from)));
#endif
#if defined(__AVX2__)
  if constexpr (L == 8)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)load_first<8>(from)));
#endif
  if constexpr (L == 4) {
    const Halves halves = (Halves)low_bytes(load_first<4>(from), Bytes{});
    return __builtin_convertvector((Ints<4>)low_halves(halves, Halves{}), Floats<4>);
  }
}

// to[i] = from[i], L at a time; the last ones overlap those before.
template <int L>
MFAC_INLINE void bytes_to_floats(const uint8_t* from, int64_t count, float* to) {
  if (count < L) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i + L <= count; i += L) store<L>(to + i, load_byte_floats<L>(from + i));
  if (count % L != 0) store<L>(to + count - L, load_byte_floats<L>(from + count - L));
}

MFAC_INLINE void fill_floats(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// Channels of bytes are first converted, with their padding.
template <int L, int K, int S>
MFAC_INLINE void depthwise_channels(const Depthwise<uint8_t>& d) {
  const int64_t width = d.left + d.width + d.right, height = d.top + d.height + d.bottom;
  const DepthwiseImage image{d.staged, width, height, width, 0, 0, d.staged};
  const Inner inner = find_edges<uint8_t, L, K, S>(d, image);
  const int rows = rows_at_a_time<uint8_t, K, S>(d.to_height);
  fill_floats(d.staged, width * height, d.around);
  for (int64_t channel = 0; channel < d.channels; ++channel) {
    const uint8_t* from = d.from + channel * d.height * d.width;
    float* to = d.staged + d.top * width + d.left;
    for (int64_t y = 0; y < d.height; ++y, from += d.width, to += width)
      bytes_to_floats<L>(from, d.width, to);
    depthwise_channel<uint8_t, L, K, S>(d, image, inner, rows, channel);
  }
}

template <int K, int S, class Pixel>
void depthwise(const Depthwise<Pixel>& given) {
  const Depthwise<Pixel> d = given;  // a local copy, which stores cannot alias
  const auto vectors = [&d](int64_t lanes) { return (d.to_width + lanes - 1) / lanes; };
  if (MFAC_WIDE > MFAC_NARROW && vectors(MFAC_WIDE) < vectors(MFAC_NARROW))
    return depthwise_channels<MFAC_WIDE, K, S>(d);
  depthwise_channels<MFAC_NARROW, K, S>(d);
}

template <class Pixel>
void fill_depthwise(DepthwiseFunction<Pixel> (*table)[kDepthwiseStrides]) {
  table[0][0] = depthwise<3, 1, Pixel>;
  table[0][1] = depthwise<3, 2, Pixel>;
  table[1][0] = depthwise<5, 1, Pixel>;
  table[1][1] = depthwise<5, 2, Pixel>;
}

DepthwiseKernels make_depthwise_table() {
  DepthwiseKernels table = {};
  fill_depthwise(table.floats);
  fill_depthwise(table.bytes);
  return table;
}
