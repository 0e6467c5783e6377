// Which threads run an operator's tasks: ONNX Runtime does not tell how many its session has.
//
// Where every task prepares its input anew, splitting the work costs time, and gains some only if
// several threads take part. Whether they do is seen in the first calls, and now and then again, as
// threads may have been busy. Results are the same either way.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace mfac {

class TaskThreads {
 public:
  // Whether to split a call: several threads ran tasks before, or it is time to see whether they do.
  bool may_be_several() {
    if (several_.load(std::memory_order_relaxed)) return true;
    return calls_.fetch_add(1, std::memory_order_relaxed) % kAgain < kSeen;
  }
  // Every task reports the thread that called the operator.
  void ran_for(std::thread::id caller) {
    if (std::this_thread::get_id() != caller) several_.store(true, std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kSeen = 2;
  static constexpr uint32_t kAgain = 256;
  std::atomic<bool> several_{false};
  std::atomic<uint32_t> calls_{0};
};

}  // namespace mfac
