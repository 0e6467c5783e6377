// Distributes the work of a linear layer of many rows over threads: in tiles of rows, which are
// transposed to columns first.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "ort.hpp"
#include "scratch.hpp"

namespace mfac {

struct RowTiles {
  int64_t tiles;
  int64_t inputs;
  int64_t height;  // rows of a tile
  int64_t groups;  // of outputs, which can be computed separately
  int64_t chunks;  // of groups into which a tile's work is divided
};

constexpr int64_t kFewTiles = 4;
constexpr int64_t kFillBytes = 32 << 10;  // of columns, that one thread fills at a time

// Work that several tasks need done before they go on: each does some parts, then waits for the
// parts of the others.
class Preparation {
 public:
  template <class Work>
  void join(int64_t parts, const Work& work) {
    for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      const Done one{done_};
      work(part);
    }
    while (done_.load(std::memory_order_acquire) < parts) std::this_thread::yield();
  }

 private:
  // Counts a part as done also if it runs out of memory: the call fails then, and nobody waits.
  struct Done {
    std::atomic<int64_t>& count;
    ~Done() { count.fetch_add(1, std::memory_order_release); }
  };
  std::atomic<int64_t> next_{0}, done_{0};
};

// fill(tile, columns, begin, end) writes the columns of some inputs of a tile; work_on(tile,
// columns, group_begin, group_end) multiplies some groups' weights with all of them.
template <class Value, class Fill, class Work>
void share_tiles(const Call& call, const RowTiles& all, const Fill& fill, const Work& work_on) {
  const int64_t values = all.inputs * all.height;
  const auto columns_in = [&](Buffer& buffer, int64_t tiles) {
    const size_t bytes = static_cast<size_t>(values * tiles) * sizeof(Value);
    return reinterpret_cast<Value*>(buffer.bytes(bytes));
  };
  if (all.tiles >= kFewTiles) {
    auto task = [&](size_t index) {
      const int64_t tile = static_cast<int64_t>(index);
      Value* columns = columns_in(scratch().columns, 1);
      fill(tile, columns, 0, all.inputs);
      work_on(tile, columns, 0, all.groups);
    };
    return call.parallel(static_cast<size_t>(all.tiles), task);
  }
  // Few tiles: several tasks share the columns of a tile. A tile's tasks are numbered
  // consecutively, so that a thread has the columns in its second cache while it reads them.
  const int64_t chunks = std::clamp<int64_t>(all.chunks, 1, std::min<int64_t>(all.groups, 8));
  const int64_t bytes = values * static_cast<int64_t>(sizeof(Value));
  const int64_t parts =
      std::clamp<int64_t>(bytes / kFillBytes, 1, std::min<int64_t>(all.inputs, 16));
  Value* made = columns_in(scratch().inputs, all.tiles);
  Preparation filling[kFewTiles];
  auto task = [&](size_t index) {
    const int64_t tile = static_cast<int64_t>(index) / chunks;
    const int64_t chunk = static_cast<int64_t>(index) % chunks;
    Value* columns = made + tile * values;
    filling[tile].join(parts, [&](int64_t part) {
      fill(tile, columns, all.inputs * part / parts, all.inputs * (part + 1) / parts);
    });
    work_on(tile, columns, all.groups * chunk / chunks, all.groups * (chunk + 1) / chunks);
  };
  call.parallel(static_cast<size_t>(all.tiles * chunks), task);
}

}  // namespace mfac
