// Whether several threads run an operator's tasks: ONNX Runtime does not tell how many there are.
//
// Where every task prepares its input anew, splitting the work costs time, and gains some only if
// several threads take part. The first calls are split to see whether they do, and a few later
// ones, as threads may have been busy. Results are the same either way.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace mfac {

class TaskThreads {
 public:
  // Whether to split a call: several threads ran tasks before, or this call is to show whether they
  // do.
  bool may_be_several() {
    if (several_.load(std::memory_order_relaxed)) return true;
    return calls_.fetch_add(1, std::memory_order_relaxed) % kPeriod < kTrials;
  }
  // To be called by every task, with the thread that called the operator.
  void ran_for(std::thread::id caller) {
    if (std::this_thread::get_id() != caller) several_.store(true, std::memory_order_relaxed);
  }

 private:
  // So many of each period's calls are split to see it.
  static constexpr uint32_t kTrials = 2;
  static constexpr uint32_t kPeriod = 256;
  std::atomic<bool> several_{false};
  std::atomic<uint32_t> calls_{0};
};

}  // namespace mfac
