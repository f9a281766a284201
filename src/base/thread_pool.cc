#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "base/log.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

// Longer than the gap between two ops of a step, far shorter than the gap between two requests.
// Told by the clock: a pause lasts 5 to 50 ns, as the processor likes.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 32;

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until value != old: spin, then sleep.
uint32_t WaitForChange(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// A place that cannot be had (a container took the cores away) is no reason to fail.
void StayOn(const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  const int most = *std::max_element(cpus.begin(), cpus.end());
  cpu_set_t* mask = CPU_ALLOC(most + 1);
  NIBBLE_CHECK(mask != nullptr, "mask of {} cores", most + 1);
  const size_t bytes = CPU_ALLOC_SIZE(most + 1);
  CPU_ZERO_S(bytes, mask);
  for (const int cpu : cpus) CPU_SET_S(cpu, bytes, mask);
  if (pthread_setaffinity_np(pthread_self(), bytes, mask) != 0)
    LogWarning("a thread cannot stay on its {} cores, of which core {} is one", cpus.size(), most);
  CPU_FREE(mask);
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : ThreadPool(std::vector<ThreadPlace>(static_cast<size_t>(std::max(threads, 0)))) {}

ThreadPool::ThreadPool(const std::vector<ThreadPlace>& places)
    : threads_(static_cast<int>(places.size())) {
  NIBBLE_CHECK(!places.empty(), "a pool without threads");
  std::vector<double> speeds;
  for (const ThreadPlace& place : places) speeds.push_back(place.speed);
  SetSpeeds(speeds);
  workers_.reserve(places.size() - 1);
  for (int thread = 1; thread < threads_; ++thread)
    workers_.emplace_back([this, thread, cpus = places[thread].cpus] {
      StayOn(cpus);
      WorkerLoop(thread);
    });
}

void ThreadPool::SetSpeeds(const std::vector<double>& speeds) {
  NIBBLE_CHECK(static_cast<int>(speeds.size()) == threads_, "{} speeds of {} threads",
               speeds.size(), threads_);
  constexpr double kFastest = 1 << 20;
  const double fastest = *std::max_element(speeds.begin(), speeds.end());
  shares_.assign(1, 0);
  for (const double speed : speeds) {
    NIBBLE_CHECK(speed > 0, "speed {}", speed);
    shares_.push_back(shares_.back() +
                      std::max<int64_t>(1, std::llround(speed / fastest * kFastest)));
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

ThreadPool::Range ThreadPool::RangeOf(int64_t n, int64_t grain, int thread) const {
  const int64_t items = (n + grain - 1) / grain;
  // In 128 bits: items may count bytes.
  const auto border = [&](int64_t share) {
    return std::min(
        n, static_cast<int64_t>(static_cast<__int128>(items) * share / shares_.back()) * grain);
  };
  return {border(shares_[thread]), border(shares_[thread + 1])};
}

void ThreadPool::RunRange(int thread) const {
  if (on_every_thread_) return body_(context_, thread, thread + 1, thread);
  const Range range = RangeOf(n_, grain_, thread);
  if (range.begin < range.end) body_(context_, range.begin, range.end, thread);
}

void ThreadPool::Run(int64_t n, int64_t grain, Body body, void* context, bool on_every_thread) {
  NIBBLE_CHECK(!busy_.exchange(true, std::memory_order_acquire),
               "nested or concurrent ParallelFor");
  n_ = n;
  grain_ = std::max<int64_t>(grain, 1);
  on_every_thread_ = on_every_thread;
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
