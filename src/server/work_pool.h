// Threads for work whose size users decide: parsing JSON, rendering templates, tokenising,
// formatting answers. First in, first out. A job's exception is logged and ends the job alone.
// Thread-safety: Submit may be called from any thread, also from a job.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble::server {

class WorkPool {
 public:
  explicit WorkPool(int threads);
  ~WorkPool() { Stop(); }
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  void Submit(std::function<void()> job);  // without effect after Stop
  // Finishes the jobs that run, drops the others. Idempotent; not from a job.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable available_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace nibble::server
