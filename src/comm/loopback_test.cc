#include <gtest/gtest.h>

#include <thread>

#include "comm/communicator.h"

namespace nibble {
namespace {

TEST(Loopback, SumsAndGathersInOrderOfRank) {
  constexpr int kRanks = 3;
  const auto ranks = MakeLoopback(kRanks);
  std::vector<std::vector<float>> sums(kRanks), gathered(kRanks);
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      for (int round = 0; round < 100; ++round) {
        // 1e8 + 1 - 1e8: the order of the sum shows.
        std::vector<float> mine = {r == 0 ? 1e8f : r == 1 ? 1.0f : -1e8f, static_cast<float>(r)};
        gathered[r].resize(2 * kRanks);
        ranks[r]->AllGather(mine.data(), 2, gathered[r].data());
        ranks[r]->AllReduceSum(mine.data(), 2);
        sums[r] = mine;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int r = 0; r < kRanks; ++r) {
    EXPECT_EQ(sums[r], (std::vector<float>{(1e8f + 1.0f) - 1e8f, 3.0f}));
    EXPECT_EQ(gathered[r], (std::vector<float>{1e8f, 0, 1.0f, 1, -1e8f, 2}));
  }
}

}  // namespace
}  // namespace nibble
