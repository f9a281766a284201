#include "engine/page_populator.h"

#include <algorithm>

#include "device/populate.h"

namespace nibble::engine {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

// As many pages as fill a huge page with the keys of the layer that has the smallest.
int64_t StepPages(const models::KvPool& pool) {
  if (pool.parts().empty()) return std::max<int64_t>(1, pool.pages());
  const int64_t smallest =
      std::ranges::min(pool.parts(), {}, &models::KvPool::Part::page_bytes).page_bytes;
  return std::max<int64_t>(1, kHugePage / smallest);
}

}  // namespace

PagePopulator::PagePopulator(const models::KvPool& pool)
    : pool_(pool), step_(StepPages(pool)), wanted_(std::min(step_, pool.pages())) {
  thread_ = std::thread([this] { Run(); });
}

PagePopulator::~PagePopulator() {
  stops_.store(true, std::memory_order_release);
  {
    const std::lock_guard lock(mutex_);
  }
  changed_.notify_one();
  thread_.join();
}

void PagePopulator::Want(int64_t reached) {
  reached_ = reached;
  {
    const std::lock_guard lock(mutex_);
    wanted_ = std::min((reached + 1) * step_, pool_.pages());
  }
  changed_.notify_one();
}

void PagePopulator::Run() {
  for (int64_t done = 0;;) {
    int64_t wanted;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stops_ || wanted_ > done; });
      if (stops_) return;
      wanted = wanted_;
    }
    const int64_t end = std::min(done + step_, wanted);
    for (const auto& [begin, page_bytes] : pool_.parts()) {
      if (stops_) return;
      PopulateMemory(begin + done * page_bytes, static_cast<size_t>((end - done) * page_bytes));
    }
    done = end;
    populated_.store(done, std::memory_order_release);
  }
}

}  // namespace nibble::engine
