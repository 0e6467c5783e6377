// Distributes the work of a linear layer of many rows over threads: in tiles of rows, which are
// transposed to columns first.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ort.hpp"
#include "scratch.hpp"

namespace mfac {

struct RowTiles {
  int64_t tiles;
  int64_t values;  // in the columns of a tile
  int64_t groups;  // of outputs, which can be computed separately
  int64_t chunks;  // of groups into which a tile's work is divided
};

// fill(tile, columns) writes the columns of a tile; work_on(tile, columns, group_begin, group_end)
// multiplies some groups' weights with them.
template <class Value, class Fill, class Work>
void share_tiles(const Call& call, const RowTiles& all, const Fill& fill, const Work& work_on) {
  const auto columns_in = [](Buffer& buffer, int64_t count) {
    return reinterpret_cast<Value*>(buffer.bytes(static_cast<size_t>(count) * sizeof(Value)));
  };
  if (all.tiles < 4) {
    // Few tiles: tasks share the outputs of one tile after the other, whose columns then need not
    // leave the second cache before they are read.
    const int64_t chunks = std::clamp<int64_t>(all.chunks, 1, std::min<int64_t>(all.groups, 8));
    Value* columns = columns_in(scratch().inputs, all.values);
    for (int64_t tile = 0; tile < all.tiles; ++tile) {
      fill(tile, columns);
      auto task = [&](size_t index) {
        const int64_t chunk = static_cast<int64_t>(index);
        work_on(tile, columns, all.groups * chunk / chunks, all.groups * (chunk + 1) / chunks);
      };
      call.parallel(static_cast<size_t>(chunks), task);
    }
    return;
  }
  auto task = [&](size_t index) {
    const int64_t tile = static_cast<int64_t>(index);
    Value* columns = columns_in(scratch().columns, all.values);
    fill(tile, columns);
    work_on(tile, columns, 0, all.groups);
  };
  call.parallel(static_cast<size_t>(all.tiles), task);
}

}  // namespace mfac
