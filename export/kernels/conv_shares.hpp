// How the work of an operator is shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ort.hpp"
#include "scratch.hpp"
#include "task_threads.hpp"

namespace mfac {

constexpr int64_t kTaskWork = 400000;     // multiplications that justify waking a thread
constexpr int64_t kTaskBytes = 64 << 10;  // bytes to read that do
constexpr int64_t kMostTasks = 16;        // of an image, or of what is read

// One task's part of an image: some tiles, and chunk `chunk` of `chunks` of the outputs.
struct Share {
  int64_t tile_begin, tile_end, chunk, chunks;
};

struct Sharing {
  int64_t images, tiles;
  int64_t groups;  // of outputs, which can be computed separately
  int64_t work;    // an image's multiplications of values, or of quads, with positions
  int64_t most_chunks = kMostTasks;  // of the outputs
  TaskThreads* threads = nullptr;    // if every chunk prepares its pixels anew
};

constexpr int64_t kImages = 8;  // of which each is a task; with fewer, tasks share one image

// Run work(first, end) on parts of `count` items of `bytes` in all: in parallel if a call is given.
template <class Work>
void in_parts(const Call* call, int64_t count, int64_t bytes, const Work& work) {
  if (call == nullptr) return work(0, count);
  const int64_t most = std::min(count, kMostTasks);
  const int64_t parts = std::clamp<int64_t>(bytes / kTaskBytes, 1, most);
  auto task = [&](size_t index) {
    const int64_t part = static_cast<int64_t>(index);
    work(count * part / parts, count * (part + 1) / parts);
  };
  call->parallel(static_cast<size_t>(parts), task);
}

// pixels(image, buffer, call) returns an image's pixels, which it may copy into the buffer, in
// parallel if a call is given: where several tasks work on one image, it is prepared outside of
// them; work_on(pixels, image, share) computes one share of the image.
template <class Pixels, class Work>
void parallel_for(const Call& call, const Sharing& all, const Pixels& pixels, const Work& work_on) {
  if (all.images >= kImages) {  // a task works on a whole image
    auto task = [&](size_t index) {
      const int64_t image = static_cast<int64_t>(index);
      work_on(pixels(image, scratch().columns, nullptr), image, Share{0, all.tiles, 0, 1});
    };
    call.parallel(static_cast<size_t>(all.images), task);
    return;
  }
  // A power of two: threads get equal shares, mostly of positions that they wrote in the operator
  // before.
  const int64_t most = all.threads && !all.threads->may_be_several() ? 1 : kMostTasks;
  int64_t wanted = 1;
  while (wanted < most && wanted * kTaskWork < all.work) wanted *= 2;
  const int64_t by_tiles = std::min(all.tiles, wanted);
  const int64_t chunks =
      std::min({(wanted + by_tiles - 1) / by_tiles, all.groups, all.most_chunks});
  for (int64_t image = 0; image < all.images; ++image) {
    const auto there = pixels(image, scratch().inputs, &call);
    auto task = [&, caller = std::this_thread::get_id()](size_t index) {
      if (all.threads) all.threads->ran_for(caller);
      const int64_t by_tile = static_cast<int64_t>(index) / chunks;
      work_on(there, image,
              Share{all.tiles * by_tile / by_tiles, all.tiles * (by_tile + 1) / by_tiles,
                    static_cast<int64_t>(index) % chunks, chunks});
    };
    call.parallel(static_cast<size_t>(by_tiles * chunks), task);
  }
}

}  // namespace mfac
