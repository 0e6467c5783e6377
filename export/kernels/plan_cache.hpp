// The plans of the last few input sizes. Threads hold the lock only to copy a pointer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mfac {

template <class Plan>
class PlanCache {
 public:
  // make() creates the plan if there is none for images of this size.
  template <class Make>
  std::shared_ptr<const Plan> find(int64_t height, int64_t width, const Make& make) const {
    auto search = [&](const Plans& plans) -> std::shared_ptr<const Plan> {
      for (const auto& plan : plans)
        if (plan->input.height == height && plan->input.width == width) return plan;
      return nullptr;
    };
    if (auto found = search(*std::atomic_load(&plans_))) return found;
    const std::lock_guard<std::mutex> lock(adding_);
    if (auto found = search(*plans_)) return found;
    auto made = std::make_shared<const Plan>(make());
    auto plans = std::make_shared<Plans>(*plans_);
    if (plans->size() == kMost) plans->erase(plans->begin());
    plans->push_back(made);
    std::atomic_store(&plans_, std::shared_ptr<const Plans>(std::move(plans)));
    return made;
  }

 private:
  using Plans = std::vector<std::shared_ptr<const Plan>>;
  static constexpr size_t kMost = 8;
  mutable std::shared_ptr<const Plans> plans_ = std::make_shared<const Plans>();
  mutable std::mutex adding_;
};

}  // namespace mfac
