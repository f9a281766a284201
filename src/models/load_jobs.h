// LoadJobs: the pieces of work that a model's loading consists of, one per weight or expert.
//
// Into the host's memory they run at once, in order, each with all threads. Into another device's
// they are kept and run side by side, one lane per thread: while one reads a file another's bytes
// are under way and a third's are packed. Large ones start first, so that none is left alone at the
// end. Whatever the order, the error is that of the first job that fails in it. Used from one
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "device/device.h"

namespace nibble::models {

class LoadJobs {
 public:
  // lane: null on the host. May run on any thread of the pool, and must not use the pool then.
  using Job = std::function<Status(UploadLane* lane)>;

  LoadJobs(Device& device, ThreadPool& pool) : device_(device), pool_(pool) {}

  // Whether jobs run side by side.
  bool parallel() const { return !device_.host_memory(); }

  // elements: of the weight, for the order. On the host: the job's error.
  Status Add(int64_t elements, Job job);
  // All that were kept.
  Status Run();

 private:
  struct Kept {
    int64_t elements = 0;
    Job job;
  };

  Device& device_;
  ThreadPool& pool_;
  std::vector<Kept> kept_;
};

}  // namespace nibble::models
