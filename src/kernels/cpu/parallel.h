// How the CPU ops spread work over the pool of their context. Without a pool they run on the
// caller. No result may depend on which thread does what.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

inline int Threads(const OpContext& context) {
  return context.pool != nullptr ? context.pool->threads() : 1;
}

// fn(begin, end) over contiguous ranges of [0, n); at least `grain` items per range pay for waking
// a thread.
template <typename Fn>
void ForEachRange(const OpContext& context, int64_t n, int64_t grain, Fn&& fn) {
  if (context.pool == nullptr) {
    if (n > 0) fn(int64_t{0}, n);
    return;
  }
  context.pool->ParallelFor(n, grain, [&](int64_t begin, int64_t end, int) { fn(begin, end); });
}

// fn(item, thread) for every item of [0, n); threads take the next item as they become free, for
// items of unequal size.
template <typename Fn>
void ForEachItem(const OpContext& context, int64_t n, Fn&& fn) {
  const int threads = Threads(context);
  if (threads == 1 || n <= 1) {
    for (int64_t item = 0; item < n; ++item) fn(item, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  context.pool->OnEveryThread([&](int thread) {
    for (int64_t item = next.fetch_add(1); item < n; item = next.fetch_add(1)) fn(item, thread);
  });
}

}  // namespace nibble::kernels::cpu
