// PagePopulator: memory for the KV pages that come next, while the engine computes.
//
// The host's system finds and clears memory when it is first written, which takes 2 to 4 % of the
// time of a small model where a virtual machine has to get it from its own host. KvCache gives out
// new pages in ascending order, so a thread has the pages ahead of them populated; it sleeps
// otherwise. No more than a step ahead: memory that nobody asks for stays the system's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "models/model.h"

namespace nibble::engine {

class PagePopulator {
 public:
  // The pool, of the host's memory, outlives it. The first step's pages are populated at once.
  explicit PagePopulator(const models::KvPool& pool);
  ~PagePopulator();
  PagePopulator(const PagePopulator&) = delete;
  PagePopulator& operator=(const PagePopulator&) = delete;

  // A page has been given out: the pages of its step and of the next one are wanted. One thread.
  void Reach(int64_t page) {
    if (page / step_ >= reached_) Want(page / step_ + 1);
  }

  // Pages from 0 on whose memory is there. From any thread.
  int64_t populated() const { return populated_.load(std::memory_order_acquire); }
  // Pages of a step: of every layer's keys, and values, as much as lies in a huge page.
  int64_t step() const { return step_; }

 private:
  void Want(int64_t reached);
  void Run();

  const models::KvPool& pool_;
  const int64_t step_;
  int64_t reached_ = 0;  // steps of which a page has been given out
  std::atomic<int64_t> populated_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t wanted_ = 0;  // pages
  std::atomic<bool> stops_ = false;
  std::thread thread_;
};

}  // namespace nibble::engine
