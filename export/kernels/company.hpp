// Whether threads share the work of a call: ONNX Runtime does not tell how many there are.
//
// The threads show on which tasks ran. As long as all ran on their caller's, work need not be split;
// now and then it is nevertheless, to see whether that has changed. Results are the same either way.
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
      alone_ = -kLater;
    else
      alone_.fetch_add(1, std::memory_order_relaxed);
  }
  static bool is_alone() {
    const int64_t calls = alone_.load(std::memory_order_relaxed);
    if (calls < kEnough) return false;
    return asked_.fetch_add(1, std::memory_order_relaxed) % kAgain != 0;
  }

 private:
  static constexpr int64_t kEnough = 64;     // calls after which a thread counts as alone
  static constexpr int64_t kLater = 10000;  // calls that it takes after a shared one
  static constexpr int64_t kAgain = 256;     // calls of which one is split nevertheless
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> shared_{false};
  inline static std::atomic<int64_t> alone_{0}, asked_{0};
};

}  // namespace mfac
