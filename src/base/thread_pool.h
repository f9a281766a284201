// A fixed pool for data-parallel kernels.
//
// ParallelFor splits [0, n) into one contiguous range per thread, as long as its core is fast:
// ranges are fixed by n, grain and the places of the threads, so that each thread reads one pure
// stream of weights, always the same one, from the memory beside its core. A kernel whose
// arithmetic per item does not depend on the split gives the same bits for every split. The calling
// thread takes the first range.
//
// Workers wait for the next call by spinning for some microseconds, then sleep: an idle pool burns
// no CPU. Thread-safety: one ParallelFor at a time (the engine thread's); NIBBLE_CHECK enforces it.
// Not re-entrant.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace nibble {

// Where a thread of a pool runs.
struct ThreadPlace {
  std::vector<int> cpus;  // the worker stays on these cores; none: where the system puts it
  double speed = 1;       // of such a core beside the others', above 0
};

class ThreadPool {
 public:
  // threads >= 1, the caller included: ThreadPool(1) starts none. All cores count as equal.
  explicit ThreadPool(int threads);
  // One thread per place. The caller is never moved: whoever it is, its place only says its speed.
  explicit ThreadPool(const std::vector<ThreadPlace>& places);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // One speed per thread, above 0: what later calls split by.
  void SetSpeeds(const std::vector<double>& speeds);

  // What ParallelFor gives to a thread.
  struct Range {
    int64_t begin;
    int64_t end;  // == begin: nothing
  };
  Range RangeOf(int64_t n, int64_t grain, int thread) const;

  // Calls fn(begin, end, thread) on disjoint ranges that cover [0, n); range borders are multiples
  // of grain. A template, so that the hot path has no std::function.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, Fn&& fn) {
    if (n <= 0) return;
    if (threads_ == 1 || n <= grain) {
      fn(int64_t{0}, n, 0);
      return;
    }
    Run(n, grain, &Trampoline<std::remove_reference_t<Fn>>, &fn);
  }

  // Calls fn(thread) once on every thread, however fast its core is.
  template <typename Fn>
  void OnEveryThread(Fn&& fn) {
    if (threads_ == 1) {
      fn(0);
      return;
    }
    const auto body = [&](int64_t, int64_t, int thread) { fn(thread); };
    Run(0, 1, &Trampoline<const decltype(body)>, const_cast<void*>(static_cast<const void*>(&body)),
        true);
  }

 private:
  using Body = void (*)(void* context, int64_t begin, int64_t end, int thread);
  template <typename Fn>
  static void Trampoline(void* context, int64_t begin, int64_t end, int thread) {
    (*static_cast<Fn*>(context))(begin, end, thread);
  }
  // on_every_thread: n does not count.
  void Run(int64_t n, int64_t grain, Body body, void* context, bool on_every_thread = false);
  void WorkerLoop(int thread);
  void RunRange(int thread) const;

  const int threads_;
  std::vector<int64_t> shares_;  // (threads + 1): running sums of the threads' shares
  std::vector<std::thread> workers_;

  // The job: written by Run before generation_ is released, read by workers after they acquire it.
  int64_t n_ = 0;
  int64_t grain_ = 1;
  bool on_every_thread_ = false;
  Body body_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> pending_{0};
};

}  // namespace nibble
