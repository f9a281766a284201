// How benchmarks of the CPU's kernels take time.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>

namespace nibble::kernels {

// In seconds. thread_time: of the calling thread alone, which other processes disturb less.
inline double BenchNow(bool thread_time) {
  if (!thread_time) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The shortest of several runs, in seconds.
template <typename Fn>
double BestSeconds(bool thread_time, Fn&& fn) {
  constexpr double kMinSeconds = 0.1;
  constexpr int kMinRepetitions = 5;
  double best = 1e30;
  double total = 0;
  for (int repetition = 0; repetition < kMinRepetitions || total < kMinSeconds; ++repetition) {
    const double start = BenchNow(thread_time);
    fn();
    const double seconds = BenchNow(thread_time) - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

}  // namespace nibble::kernels
