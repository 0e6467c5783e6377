#include "tiling.hpp"

#include <unistd.h>

#include <cstdlib>

namespace mfac {
namespace {

constexpr int64_t kKib = 1 << 10;
constexpr Tiling kSmall = {2, 32 * kKib, 64 * kKib, 64 * kKib, 24 * kKib, 24 * kKib, 6, 6, false};
constexpr Tiling kLarge = {4,         64 * kKib, 192 * kKib, 256 * kKib, 36 * kKib,
                           48 * kKib, 10,        48,         true};

int64_t first_cache_kib() {
  if (const char* given = std::getenv("MFAC_SPARSE_L1D")) return std::atoll(given);
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(_SC_LEVEL1_DCACHE_SIZE) / kKib;
#else
  return 0;
#endif
}

}  // namespace

const Tiling& tiling() {
  static const Tiling& chosen = first_cache_kib() >= 48 ? kLarge : kSmall;
  return chosen;
}

}  // namespace mfac
