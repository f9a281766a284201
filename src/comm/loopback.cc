#include <algorithm>
#include <barrier>
#include <span>

#include "base/check.h"
#include "comm/communicator.h"

namespace nibble {
namespace {

// What the ranks show each other between two barriers.
struct Meeting {
  explicit Meeting(int size) : barrier(size), data(size) {}
  std::barrier<> barrier;
  std::vector<const float*> data;
};

class Loopback final : public Communicator {
 public:
  Loopback(std::shared_ptr<Meeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_->data.size()); }

  void AllReduceSum(float* data, int64_t n) override {
    sum_.assign(n, 0.0f);
    Exchange(data, [&](std::span<const float* const> all) {
      for (const float* part : all)
        for (int64_t i = 0; i < n; ++i) sum_[i] += part[i];
    });
    std::copy(sum_.begin(), sum_.end(), data);
  }

  void AllGather(const float* mine, int64_t n, float* all) override {
    Exchange(mine, [&](std::span<const float* const> parts) {
      for (const float* part : parts) all = std::copy_n(part, n, all);
    });
  }

 private:
  // Shows `mine` to the others while `read` looks at everybody's.
  template <typename Read>
  void Exchange(const float* mine, Read&& read) {
    meeting_->data[rank_] = mine;
    meeting_->barrier.arrive_and_wait();
    read(std::span<const float* const>(meeting_->data));
    meeting_->barrier.arrive_and_wait();
  }

  const std::shared_ptr<Meeting> meeting_;
  const int rank_;
  std::vector<float> sum_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLoopback(int size) {
  NIBBLE_CHECK(size >= 1, "size {}", size);
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.push_back(std::make_unique<Loopback>(meeting, rank));
  return ranks;
}

}  // namespace nibble
