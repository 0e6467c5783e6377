// Depthwise convolutions of bytes with VNNI: a quad is up to four taps of a row of the window, which
// lie side by side in memory, so that loads shifted by one position each give the quads of all
// positions without any shuffle. Only the sums, as bytes, are put in order.

// Sums t of 64 positions, as store_packed has left them within lanes: to the order of positions.
template <int S>
MFAC_INLINE void store_positions(uint8_t* to, __m512i bytes) {
  if (S == 1) {  // lane l of vector t is position 4 l + t
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    bytes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
  } else {  // lane l of vector 2 j + t is position 32 j + 2 l + t
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    bytes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
    bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes);
  }
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// Rows of bytes, 64 at a time, without branches on their length.
MFAC_INLINE void copy_masked_rows(const uint8_t* from, int64_t from_stride, int64_t rows,
                                  int64_t width, uint8_t* to, int64_t to_stride) {
  const int64_t whole = (width - 1) / 64 * 64;
  const __mmask64 rest = ~uint64_t{0} >> (64 - (width - whole));
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int64_t i = 0; i < whole; i += 64) __builtin_memcpy(to + i, from + i, 64);
    _mm512_mask_storeu_epi8(to + whole, rest, _mm512_maskz_loadu_epi8(rest, from + whole));
  }
}

// All sums of a staged channel, 64 at a time.
template <int K, int S, bool BOUNDED>
MFAC_INLINE void depthwise_run(const Depthwise<uint8_t>& d, int64_t channel, const uint8_t* staged,
                               uint8_t* out) {
  constexpr int kQuads = (K + 3) / 4;
  Ints<16> weights[K][kQuads];
  MFAC_UNROLL
  for (int y = 0; y < K; ++y) {
    MFAC_UNROLL
    for (int q = 0; q < kQuads; ++q)
      weights[y][q] = broadcast_int<16>(d.cells[(channel * K + y) * kQuads + q]);
  }
  const Ints<16> begin = broadcast_int<16>(d.begin[channel * d.step]);
  const float scale = d.scales[channel * d.step];
  for (int64_t p = 0; p < d.bytes.run; p += 64) {
    Ints<16> sum[4] = {begin, begin, begin, begin};
    MFAC_UNROLL
    for (int y = 0; y < K; ++y) {
      const uint8_t* const row = staged + y % S * d.bytes.phase + y / S * d.bytes.row + p * S;
      MFAC_UNROLL
      for (int q = 0; q < kQuads; ++q) {
        MFAC_UNROLL
        for (int t = 0; t < 4; ++t) {
          const int shift = S == 1 ? t : t / 2 * 64 + t % 2 * 2;
          add_products(sum[t], load_ints<16>(row + 4 * q + shift), QuadWeights<16>(weights[y][q]));
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
        copy_masked_rows(from + y * d.width, S * d.width, (d.height - y + S - 1) / S, d.width,
                         to + row % S * b.phase + row / S * b.row, b.row);
      }
    }
    for (int64_t c = 0; c < count; ++c)
      depthwise_run<K, S, BOUNDED>(d, first + c, b.staged + c * b.channel, b.out + c * b.run);
    for (int64_t c = 0; c < count; ++c)
      copy_masked_rows(b.out + c * b.run, b.row / S, d.to_height, d.to_width,
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
