// Copies rows of pixels, or every second one of them, between borders of zeros.

// Every second one of 2 L - 1 elements.
template <int L>
MFAC_INLINE Floats<L> every_other(const float* from) {
  const Floats<L> low = load<L>(from);
  const Floats<L> high = load<L>(from + L - 1);
  if constexpr (L == 4)
    return __builtin_shufflevector(low, high, 0, 2, 5, 7);
  else if constexpr (L == 8)
    return __builtin_shufflevector(low, high, 0, 2, 4, 6, 9, 11, 13, 15);
  else
    return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27,
                                   29, 31);
}

// At least L elements: the last vector ends with them, and overlaps the one before.
template <int L>
MFAC_INLINE void pick_vectors(const float* from, int64_t step, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += L) {
    const int64_t at = i + L <= count ? i : count - L;
    store<L>(to + at, step == 1 ? load<L>(from + at) : every_other<L>(from + 2 * at));
  }
}

MFAC_INLINE void pick(const float* from, int64_t step, int64_t count, float* to) {
  if (step > 2 || count < 4) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
  } else if (count < MFAC_NARROW) {
    pick_vectors<4>(from, step, count, to);
  } else {
    pick_vectors<MFAC_NARROW>(from, step, count, to);
  }
}

MFAC_INLINE void copy_row(const RowCopy& c, int64_t row) {
  float* to = c.to + row * c.to_stride;
  for (int64_t i = 0; i < c.before; ++i) to[i] = 0.0f;
  pick(c.from + row * c.from_stride, c.step, c.count, to + c.before);
  for (int64_t i = c.before + c.count; i < c.width; ++i) to[i] = 0.0f;
}

// Which lanes of the vector at column `at` are pixels.
template <int L>
MFAC_INLINE Ints<L> pixels_at(const RowCopy& c, int64_t at) {
  static constexpr int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Ints<L> place = (Ints<L>)load<L>(kLanes) + static_cast<int32_t>(at);
  return (place >= static_cast<int32_t>(c.before)) &
         (place < static_cast<int32_t>(c.before + c.count));
}

// The first and the last vector of a row that contain pixels are read with what comes before and
// after them, and masked. What a vector writes beyond a row is in the next one, which is written
// later.
template <int L, int STEP>
MFAC_INLINE void copy_whole_vectors(const RowCopy& c, int64_t first, int64_t end, Ints<L> head,
                                    Ints<L> tail) {
  const int64_t last = (c.before + c.count - 1) / L * L;
  const auto read = [](const float* from) {
    return STEP == 1 ? load<L>(from) : every_other<L>(from);
  };
  for (int64_t row = first; row < end; ++row) {
    const float* from = c.from + row * c.from_stride - c.before * STEP;
    float* to = c.to + row * c.to_stride;
    store<L>(to, masked<L>(read(from), head));
    for (int64_t at = L; at < last; at += L) store<L>(to + at, read(from + at * STEP));
    if (last > 0) store<L>(to + last, masked<L>(read(from + last * STEP), tail));
    for (int64_t at = last + L; at < c.width; at += L) store<L>(to + at, Floats<L>{});
  }
}

// The rows that whole vectors can read: what these read before and after a row is in other rows of
// the channel.
struct ReadableRows {
  int64_t first, end;
};
template <int L>
MFAC_INLINE ReadableRows readable_rows(const RowCopy& c) {
  if (c.count == 0 || c.rows == 0) return {0, 0};
  const int64_t behind = c.before * c.step;
  const int64_t ahead = ((c.width + L - 1) / L * L - c.before) * c.step;
  const int64_t room = (c.rows - 1) * c.from_stride + (c.count - 1) * c.step + 1 - ahead;
  const int64_t first = (behind + c.from_stride - 1) / c.from_stride;
  const int64_t end = room < 0 ? 0 : room / c.from_stride + 1;
  if (first >= end || first >= c.rows) return {0, 0};
  return {first, end < c.rows ? end : c.rows};
}

MFAC_INLINE void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

// Each channel with the rows of zeros around it: copy(channel) writes its own rows.
template <class Copy>
MFAC_INLINE void each_channel(RowCopy c, const Copy& copy) {
  for (int64_t i = 0; i < c.channels; ++i, c.from += c.from_channel, c.to += c.to_channel) {
    clear(c.to - c.above * c.to_stride, c.above * c.to_stride);
    copy(c);
    clear(c.to + c.rows * c.to_stride, c.below * c.to_stride);
  }
}

template <int L, int STEP>
void copy_in_vectors(const RowCopy& given) {
  const ReadableRows inner = readable_rows<L>(given);
  const Ints<L> head = pixels_at<L>(given, 0);
  const Ints<L> tail = pixels_at<L>(given, (given.before + given.count - 1) / L * L);
  each_channel(given, [&](const RowCopy& c) {
    for (int64_t row = 0; row < inner.first; ++row) copy_row(c, row);
    copy_whole_vectors<L, STEP>(c, inner.first, inner.end, head, tail);
    for (int64_t row = inner.end; row < c.rows; ++row) copy_row(c, row);
  });
}

template <int L>
MFAC_INLINE bool copy_vectors(const RowCopy& c) {
  if (c.before >= L || c.count == 0) return false;
  // A vector may write into one other row at most, of the same channel.
  const int64_t beyond = (c.width + L - 1) / L * L - c.width;
  if (beyond > 0 && (beyond > c.width || c.to_stride != c.width)) return false;
  if (c.step == 1)
    copy_in_vectors<L, 1>(c);
  else
    copy_in_vectors<L, 2>(c);
  return true;
}

void copy_rows(const RowCopy& given) {
  if (given.step <= 2 && (copy_vectors<MFAC_WIDE>(given) || copy_vectors<MFAC_NARROW>(given)))
    return;
  each_channel(given, [](const RowCopy& c) {
    for (int64_t row = 0; row < c.rows; ++row) copy_row(c, row);
  });
}
