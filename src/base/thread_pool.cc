#include "base/thread_pool.h"

#include <algorithm>

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

// About 20 microseconds on current cores: longer than the gap between two ops of a step, far
// shorter than the gap between two requests.
constexpr int kSpins = 4000;

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until value != old: spin, then sleep.
uint32_t WaitForChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  NIBBLE_CHECK(threads >= 1, "ThreadPool({})", threads);
  workers_.reserve(threads - 1);
  for (int thread = 1; thread < threads; ++thread)
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunRange(int thread) const {
  const int64_t items = (n_ + grain_ - 1) / grain_;
  const int64_t begin = items * thread / threads_ * grain_;
  const int64_t end = std::min(n_, items * (thread + 1) / threads_ * grain_);
  if (begin < end) body_(context_, begin, end, thread);
}

void ThreadPool::Run(int64_t n, int64_t grain, Body body, void* context) {
  NIBBLE_CHECK(!busy_.exchange(true, std::memory_order_acquire),
               "nested or concurrent ParallelFor");
  n_ = n;
  grain_ = std::max<int64_t>(grain, 1);
  body_ = body;
  context_ = context;
  pending_.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunRange(0);
  for (uint32_t left = pending_.load(std::memory_order_acquire); left != 0;)
    left = WaitForChange(pending_, left);
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t seen = 0;
  while (true) {
    seen = WaitForChange(generation_, seen);
    if (stop_.load(std::memory_order_relaxed)) return;
    RunRange(thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace nibble
