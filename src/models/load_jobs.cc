#include "models/load_jobs.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

namespace nibble::models {
namespace {

// Lanes share one way to the device; more of them fill it no faster.
constexpr int kMaxLanes = 16;
constexpr size_t kSlotBytes = size_t{4} << 20;
constexpr int64_t kLargeElements = int64_t{1} << 28;

// The first of all failures, in the order of jobs.
class FirstFailure {
 public:
  void Report(size_t job, Error error) {
    const std::lock_guard lock(mutex_);
    if (job >= job_) return;
    job_ = job;
    error_ = std::move(error);
  }
  // Later jobs need not start. Those before it have started: they are taken in order.
  bool IsBefore(size_t job) {
    const std::lock_guard lock(mutex_);
    return job_ < job;
  }
  Status status() {
    if (error_) return tl::unexpected<Error>(*error_);
    return {};
  }

 private:
  std::mutex mutex_;
  size_t job_ = SIZE_MAX;
  std::optional<Error> error_;
};

}  // namespace

Status LoadJobs::Add(int64_t elements, Job job) {
  if (!parallel()) return job(nullptr);
  kept_.push_back({elements, std::move(job)});
  return {};
}

Status LoadJobs::Run() {
  if (kept_.empty()) return {};
  std::ranges::stable_partition(kept_,
                                [](const Kept& kept) { return kept.elements >= kLargeElements; });
  FirstFailure failure;
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    auto lane = device_.MakeLane(kSlotBytes);
    if (!lane) return failure.Report(0, lane.error());
    while (true) {
      const size_t at = next++;
      if (at >= kept_.size() || failure.IsBefore(at)) break;
      if (const Status status = kept_[at].job(lane->get()); !status)
        failure.Report(at, status.error());
    }
    if (const Status status = (*lane)->Finish(); !status)
      failure.Report(kept_.size(), status.error());
  };
  const int64_t lanes = std::min(pool_.threads(), kMaxLanes);
  pool_.ParallelFor(lanes, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) work();
  });
  kept_.clear();
  NIBBLE_TRY(failure.status());
  device_.Synchronize();  // small arrays that the jobs have uploaded
  if (const std::string why = device_.failure(); !why.empty())
    return Fail(Code::kInternal, "loading: {}", why);
  return {};
}

}  // namespace nibble::models
