// Copies rows of bytes between borders, and transposes matrices of bytes.

MFAC_INLINE void store_up_to_16(uint8_t* to, const uint8_t* from, int64_t count) {
  if (count == 16) return (void)__builtin_memcpy(to, from, 16);
  if (count & 8) __builtin_memcpy(to, from, 8), to += 8, from += 8;
  if (count & 4) __builtin_memcpy(to, from, 4), to += 4, from += 4;
  if (count & 2) __builtin_memcpy(to, from, 2), to += 2, from += 2;
  if (count & 1) *to = *from;
}

MFAC_INLINE void copy_many(const uint8_t* from, int64_t count, uint8_t* to) {
  if (count < 16) return store_up_to_16(to, from, count);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) __builtin_memcpy(to + i, from + i, 32);
  for (; i + 16 <= count; i += 16) __builtin_memcpy(to + i, from + i, 16);
  // The last sixteen overlap the previous ones.
  if (i < count) __builtin_memcpy(to + count - 16, from + count - 16, 16);
}

MFAC_INLINE void copy_every_other(const uint8_t* from, int64_t count, uint8_t* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const Bytes bytes = pick_bytes<16, 2>(from + 2 * i);
    __builtin_memcpy(to + i, &bytes, sizeof bytes);
  }
  for (; i < count; ++i) to[i] = from[2 * i];
}

MFAC_INLINE void fill_many(uint8_t* to, int64_t count, uint8_t value) {
  const Bytes all = value - Bytes{};
  uint8_t bytes[16];
  __builtin_memcpy(bytes, &all, sizeof bytes);
  if (count < 16) return store_up_to_16(to, bytes, count);
  for (int64_t i = 0; i + 16 <= count; i += 16) __builtin_memcpy(to + i, bytes, 16);
  __builtin_memcpy(to + count - 16, bytes, 16);
}

// One column of bytes or more, in every row.
MFAC_INLINE void fill_columns(uint8_t* to, int64_t stride, int64_t rows, int64_t count,
                              uint8_t value) {
  if (count == 1) {
    for (int64_t r = 0; r < rows; ++r) to[r * stride] = value;
    return;
  }
  for (int64_t r = 0; count > 0 && r < rows; ++r) fill_many(to + r * stride, count, value);
}

MFAC_INLINE void copy_channel(const ByteCopy& c, const uint8_t* source, uint8_t* target) {
  uint8_t* const inside = target + c.above * c.to_stride;
  fill_many(target, c.above * c.to_stride, c.around);
  fill_many(inside + c.rows * c.to_stride, c.below * c.to_stride, c.around);
  if (c.rows == 0) return;
  // Rows as far apart there as here: one copy of all of them, then the borders.
  const bool at_once = c.step == 1 && c.from_stride == c.to_stride;
  if (at_once) copy_many(source, (c.rows - 1) * c.to_stride + c.count, inside + c.before);
  for (int64_t r = 0; r < c.rows && !at_once; ++r) {
    const uint8_t* from = source + r * c.from_stride;
    uint8_t* to = inside + r * c.to_stride + c.before;
    if (c.step == 1) {
      copy_many(from, c.count, to);
    } else if (c.step == 2) {
      copy_every_other(from, c.count, to);
    } else {
      for (int64_t i = 0; i < c.count; ++i) to[i] = from[i * c.step];
    }
  }
  const int64_t end = c.before + c.count;
  fill_columns(inside, c.to_stride, c.rows, c.before, c.around);
  fill_columns(inside + end, c.to_stride, c.rows, c.to_stride - end, c.around);
}

void copy_channels(const ByteCopy& given) {
  const ByteCopy c = given;
  for (int64_t channel = 0; channel < c.channels; ++channel)
    copy_channel(c, c.from + channel * c.from_channel, c.to + channel * c.to_channel);
}

void gather_bytes(const uint8_t* from, int64_t from_stride, int64_t rows, int64_t count,
                  uint8_t* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) copy_many(from + r * from_stride, count, to + r * to_stride);
}

// Transposes a square of sixteen bytes in every lane.
template <class Vector>
MFAC_INLINE void transpose_lanes(Vector* square) {
  MFAC_UNROLL
  for (int stage = 0; stage < 4; ++stage) {
    Vector next[16];
    MFAC_UNROLL
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = low_bytes(square[i], square[i + 8]);
      next[2 * i + 1] = high_bytes(square[i], square[i + 8]);
    }
    MFAC_UNROLL
    for (int i = 0; i < 16; ++i) square[i] = next[i];
  }
}

// to[c][r] = from[r][c] for r < rows (at most 16) and c < width <= 4 * L.
template <int L>
MFAC_INLINE void transpose_some(const uint8_t* from, int64_t from_stride, int64_t rows,
                                int64_t width, uint8_t* to, int64_t to_stride) {
  ByteVector<L> square[16];
  MFAC_UNROLL
  for (int r = 0; r < 16; ++r)
    square[r] = load_bytes<L>(from + (r < rows ? r : rows - 1) * from_stride);
  transpose_lanes(square);
  if (rows == 16 && width == 4 * L) {
    MFAC_UNROLL
    for (int i = 0; i < 16; ++i) store_lanes(to + i * to_stride, 16 * to_stride, square[i]);
    return;
  }
  uint8_t columns[16][L * 4];
  __builtin_memcpy(columns, square, sizeof columns);
  for (int64_t c = 0; c < width; ++c)
    store_up_to_16(to + c * to_stride, columns[c % 16] + c / 16 * 16, rows);
}

// to[c][r] = from[r][c] for up to 4 * L of the columns.
template <int L>
MFAC_INLINE void transpose_strip(const uint8_t* from, int64_t from_stride, int64_t rows,
                                 int64_t width, uint8_t* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += 16)
    transpose_some<L>(from + r * from_stride, from_stride, rows - r < 16 ? rows - r : 16, width,
                      to + r, to_stride);
}

// to[c][r] = from[r][c] for as many rows as a vector has bytes: each column is one store.
template <int L>
MFAC_INLINE void transpose_tall(const uint8_t* from, int64_t from_stride, int64_t width,
                                uint8_t* to, int64_t to_stride) {
  for (int64_t next = 0; next < width; next += 16) {
    const int64_t c = next + 16 <= width ? next : width - 16;
    ByteVector<L> square[16];
    MFAC_UNROLL
    for (int r = 0; r < 16; ++r)
      square[r] = load_lanes<L>(from + r * from_stride + c, 16 * from_stride);
    transpose_lanes(square);
    MFAC_UNROLL
    for (int i = 0; i < 16; ++i)
      __builtin_memcpy(to + (c + i) * to_stride, &square[i], sizeof square[i]);
  }
}

// to[c][r] = from[r][c]
void transpose_bytes(const uint8_t* from, int64_t from_stride, int64_t rows, int64_t width,
                     uint8_t* to, int64_t to_stride) {
  constexpr int kWide = MFAC_WIDE * 4;
  for (; width >= 16 && rows >= kWide; rows -= kWide, from += kWide * from_stride, to += kWide)
    transpose_tall<MFAC_WIDE>(from, from_stride, width, to, to_stride);
  int64_t c = 0;
  for (; c + kWide <= width; c += kWide)
    transpose_strip<MFAC_WIDE>(from + c, from_stride, rows, kWide, to + c * to_stride, to_stride);
  for (; c < width && width >= 16; c += 16) {
    if (c + 16 > width) c = width - 16;  // the last sixteen overlap the previous ones
    transpose_strip<4>(from + c, from_stride, rows, 16, to + c * to_stride, to_stride);
  }
  for (int64_t r = 0; c < width && r < rows; r += 16) {
    const int64_t some = rows - r < 16 ? rows - r : 16;
    uint8_t padded[16 * 16] = {};
    for (int64_t i = 0; i < some; ++i)
      store_up_to_16(padded + i * 16, from + (r + i) * from_stride, width);
    transpose_some<4>(padded, 16, some, width, to + r, to_stride);
  }
}
