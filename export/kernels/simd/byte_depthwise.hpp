// Depthwise convolutions of bytes with VNNI: a quad is up to four taps of a row of the window,
// which lie side by side in memory, so that loads shifted by one position each give the quads of
// all positions without any shuffle. Only the sums, as bytes, are put in order.

// Within lanes, what store_packed leaves to the order of positions there.
template <int S>
MFAC_INLINE __m128i order_of_positions() {
  if (S == 1)  // lane l of vector t is position 4 l + t
    return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  // lane l of vector 2 j + t is position 2 (L j + l) + t of 4 L
  return _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
}

#if defined(__AVX512BW__)

template <int S>
MFAC_INLINE void store_positions(uint8_t* to, __m512i bytes) {
  bytes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order_of_positions<S>()));
  if (S == 2) bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// Rows of bytes, 64 at a time, without branches on their length.
MFAC_INLINE void copy_byte_rows(const uint8_t* from, int64_t from_stride, int64_t rows,
                                int64_t width, uint8_t* to, int64_t to_stride) {
  const int64_t whole = (width - 1) / 64 * 64;
  const __mmask64 rest = ~uint64_t{0} >> (64 - (width - whole));
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int64_t i = 0; i < whole; i += 64) __builtin_memcpy(to + i, from + i, 64);
    _mm512_mask_storeu_epi8(to + whole, rest, _mm512_maskz_loadu_epi8(rest, from + whole));
  }
}

#else

template <int S>
MFAC_INLINE void store_positions(uint8_t* to, __m256i bytes) {
  bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order_of_positions<S>()));
  if (S == 2) bytes = _mm256_permute4x64_epi64(bytes, _MM_SHUFFLE(3, 1, 2, 0));
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

MFAC_INLINE void copy_byte_rows(const uint8_t* from, int64_t from_stride, int64_t rows,
                                int64_t width, uint8_t* to, int64_t to_stride) {
  gather_bytes(from, from_stride, rows, width, to, to_stride);
}

#endif

// All sums of a staged channel, 4 L at a time.
template <int L, int K, int S, bool BOUNDED>
MFAC_INLINE void depthwise_run(const Depthwise<uint8_t>& d, int64_t channel, const uint8_t* staged,
                               uint8_t* out) {
  constexpr int kQuads = (K + 3) / 4;
  Ints<L> weights[K][kQuads];
  MFAC_UNROLL
  for (int y = 0; y < K; ++y) {
    MFAC_UNROLL
    for (int q = 0; q < kQuads; ++q)
      weights[y][q] = broadcast_int<L>(d.cells[(channel * K + y) * kQuads + q]);
  }
  const Ints<L> begin = broadcast_int<L>(d.begin[channel * d.step]);
  const float scale = d.scales[channel * d.step];
  for (int64_t p = 0; p < d.bytes.run; p += 4 * L) {
    Ints<L> sum[4] = {begin, begin, begin, begin};
    MFAC_UNROLL
    for (int y = 0; y < K; ++y) {
      const uint8_t* const row = staged + y % S * d.bytes.phase + y / S * d.bytes.row + p * S;
      MFAC_UNROLL
      for (int q = 0; q < kQuads; ++q) {
        MFAC_UNROLL
        for (int t = 0; t < 4; ++t) {
          const int shift = S == 1 ? t : t / 2 * 4 * L + t % 2 * 2;
          add_products(sum[t], load_ints<L>(row + 4 * q + shift), QuadWeights<L>(weights[y][q]));
        }
      }
    }
    store_positions<S>(out + p, packed<BOUNDED>(sum, scale, d.requantise));
  }
}

template <int K, int S, bool BOUNDED>
MFAC_INLINE void depthwise_channels(const Depthwise<uint8_t>& d) {
  const StagedBytes& b = d.bytes;
  for (int64_t first = 0; first < d.channels; first += b.together) {
    const int64_t rest = d.channels - first;
    const int64_t count = rest < b.together ? rest : b.together;
    for (int64_t c = 0; c < count; ++c) {
      const uint8_t* const from = d.from + (first + c) * d.height * d.width;
      uint8_t* const to = b.staged + c * b.channel + d.left;
      for (int64_t y = 0; y < S && y < d.height; ++y) {  // rows of the same phase
        const int64_t row = d.top + y;
        copy_byte_rows(from + y * d.width, S * d.width, (d.height - y + S - 1) / S, d.width,
                       to + row % S * b.phase + row / S * b.row, b.row);
      }
    }
    for (int64_t c = 0; c < count; ++c)
      depthwise_run<MFAC_WIDE, K, S, BOUNDED>(d, first + c, b.staged + c * b.channel,
                                              b.out + c * b.run);
    for (int64_t c = 0; c < count; ++c)
      copy_byte_rows(b.out + c * b.run, b.row / S, d.to_height, d.to_width,
                     d.to + (first + c) * d.to_height * d.to_width, d.to_width);
  }
}

template <int K, int S>
void depthwise_bytes(const Depthwise<uint8_t>& given) {
  const Depthwise<uint8_t> d = given;  // a local copy, which stores cannot alias
  d.requantise.bounded ? depthwise_channels<K, S, true>(d) : depthwise_channels<K, S, false>(d);
}

void fill_byte_depthwise(DepthwiseKernels& table) {
  table.stages_bytes = true;
  table.bytes[0][0] = depthwise_bytes<3, 1>;
  table.bytes[0][1] = depthwise_bytes<3, 2>;
  table.bytes[1][0] = depthwise_bytes<5, 1>;
  table.bytes[1][1] = depthwise_bytes<5, 2>;
}
