#include "device/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace nibble {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

bool AllZero(const Buffer& buffer) {
  return std::all_of(buffer.data(), buffer.data() + buffer.size(),
                     [](std::byte byte) { return byte == std::byte{0}; });
}

TEST(Buffer, MemoryThatWasInUseReadsAsZeroAgain) {
  for (const size_t bytes : {size_t{1}, size_t{5000}, kHugePage - 1, kHugePage, kHugePage + 1}) {
    for (int round = 0; round < 3; ++round) {
      auto buffer = Buffer::Allocate(bytes);
      ASSERT_TRUE(buffer.has_value());
      EXPECT_TRUE(AllZero(*buffer)) << bytes << " bytes, round " << round;
      std::memset(buffer->data(), 0xFF, bytes);
    }
  }
}

TEST(Buffer, SmallOnesLieApartFromEachOtherWithinHugePages) {
  constexpr size_t kBytes = kHugePage / 2 - 4096;  // two to a huge page, and a rest
  std::vector<Buffer> buffers;
  std::vector<uintptr_t> starts;
  for (int i = 0; i < 64; ++i) {
    auto buffer = Buffer::Allocate(kBytes);
    ASSERT_TRUE(buffer.has_value());
    starts.push_back(reinterpret_cast<uintptr_t>(buffer->data()));
    std::memset(buffer->data(), i, kBytes);
    buffers.push_back(std::move(*buffer));
  }
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(starts[i] % 4096, 0u);
    EXPECT_EQ(std::to_integer<int>(buffers[i].data()[0]), i);
    EXPECT_EQ(std::to_integer<int>(buffers[i].data()[kBytes - 1]), i);
  }
  // Most stand wall to wall.
  int neighbours = 0;
  std::sort(starts.begin(), starts.end());
  for (int i = 1; i < 64; ++i) neighbours += starts[i] - starts[i - 1] == kBytes + 0u ? 1 : 0;
  EXPECT_GT(neighbours, 48);
  // Holes that are freed do not touch what stays.
  for (int i = 0; i < 64; i += 2) buffers[i] = Buffer();
  for (int i = 1; i < 64; i += 2) {
    EXPECT_EQ(std::to_integer<int>(buffers[i].data()[0]), i);
    EXPECT_EQ(std::to_integer<int>(buffers[i].data()[kBytes - 1]), i);
  }
}

TEST(Buffer, ManyThreadsAllocateAndFree) {
  std::vector<std::thread> threads;
  for (int t = 1; t <= 4; ++t) {
    threads.emplace_back([t] {
      for (int round = 0; round < 200; ++round) {
        auto first = Buffer::Allocate(size_t{4096} * t + 1);
        auto second = Buffer::Allocate(100);
        if (!first.has_value() || !second.has_value()) return ADD_FAILURE() << "no memory";
        if (!AllZero(*first) || !AllZero(*second)) return ADD_FAILURE() << "not zero";
        std::memset(first->data(), t, first->size());
        std::memset(second->data(), t, second->size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace nibble
