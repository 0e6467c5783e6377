// Vectors of a fixed width as a compiler extension. No std:: in simd/: the linker could keep an
// inline function that was compiled for a newer processor and use it everywhere.

#if defined(__clang__)
#define MFAC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MFAC_UNROLL _Pragma("GCC unroll 32")
#endif
#define MFAC_INLINE inline __attribute__((always_inline))

template <int L>
struct VectorOf {
  typedef float type __attribute__((vector_size(L * 4)));
  typedef int32_t ints __attribute__((vector_size(L * 4)));
  typedef uint32_t cells __attribute__((vector_size(L * 4)));
};
template <int L>
using Floats = typename VectorOf<L>::type;
template <int L>
using Ints = typename VectorOf<L>::ints;
template <int L>
using Cells = typename VectorOf<L>::cells;

template <int L>
MFAC_INLINE Floats<L> load(const void* from) {
  Floats<L> value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <int L>
MFAC_INLINE void store(void* to, Floats<L> value) {
  __builtin_memcpy(to, &value, sizeof value);
}

template <int L>
MFAC_INLINE Floats<L> broadcast(float value) {
  return value - Floats<L>{};
}

// NaN stays NaN: both comparisons are false for it.
template <int L>
MFAC_INLINE Floats<L> clip(Floats<L> value, float low, float high) {
  const Floats<L> least = broadcast<L>(low);
  const Floats<L> most = broadcast<L>(high);
  value = value < least ? least : value;
  return value > most ? most : value;
}

template <int L>
MFAC_INLINE Floats<L> masked(Floats<L> value, Ints<L> keep) {
  return (Floats<L>)((Ints<L>)value & keep);
}

// Whether no lane is NaN or other than 0. Compared and joined as bits: a sum of the lanes would wait
// for one addition after the other.
template <int L>
MFAC_INLINE bool all_zero(Floats<L> value) {
  const Ints<L> nonzero = value != 0.0f;
  int32_t lanes[L];
  __builtin_memcpy(lanes, &nonzero, sizeof lanes);
  int32_t any = 0;
  MFAC_UNROLL
  for (int lane = 0; lane < L; ++lane) any |= lanes[lane];
  return any == 0;
}
