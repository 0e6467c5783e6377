// Whether calls are shared by threads: ONNX Runtime does not tell how many there are.
//
// It is seen from which threads tasks ran on. As long as none was another one than the caller's, work
// need not be split. Now and then a call is split nevertheless, to see whether that has changed.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace mfac {

class Company {
 public:
  // Any task of the call, on its thread.
  void meet() {
    if (std::this_thread::get_id() != caller_) shared_.store(true, std::memory_order_relaxed);
  }
  // After a call of several tasks.
  void part() {
    if (shared_.load(std::memory_order_relaxed))
      alone_ = -kForgotten;
    else
      alone_.fetch_add(1, std::memory_order_relaxed);
  }
  static bool is_alone() {
    const int64_t calls = alone_.load(std::memory_order_relaxed);
    if (calls < kEnough) return false;
    return asked_.fetch_add(1, std::memory_order_relaxed) % kAgain != 0;
  }

 private:
  static constexpr int64_t kEnough = 64;         // calls after which a thread counts as alone
  static constexpr int64_t kForgotten = 100000;  // calls for which it then does not
  static constexpr int64_t kAgain = 256;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> shared_{false};
  inline static std::atomic<int64_t> alone_{0}, asked_{0};
};

}  // namespace mfac
