// A point on the monotonic clock after which nothing is waited for any more.
#pragma once

#include <algorithm>
#include <ctime>

namespace cni {

inline long now_ms() {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

class Deadline {
  public:
    static Deadline in_ms(long span, long since = now_ms()) {
        return Deadline(since + span);
    }
    // Never negative: fit for poll(2).
    int left_ms() const {
        return static_cast<int>(std::clamp(at_ - now_ms(), 0L, 0x7fffffffL));
    }
    bool passed() const {
        return left_ms() == 0;
    }

  private:
    explicit Deadline(long at) : at_(at) {}
    long at_;
};

} // namespace cni
