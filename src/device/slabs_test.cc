#include "device/slabs.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

namespace nibble {
namespace {

// Addresses that nobody reads or writes.
class SlabsTest : public ::testing::Test {
 protected:
  Slabs::Source Source() {
    return {.allocate = [this](size_t bytes) -> Result<std::byte*> {
              if (taken_ + bytes > limit_)
                return Fail(Code::kResourceExhausted, "{} bytes are too many", bytes);
              taken_ += bytes;
              std::byte* const start = next_;
              next_ += bytes + 4096;
              sizes_[start] = bytes;
              return start;
            },
            .free =
                [this](std::byte* start) {
                  ASSERT_TRUE(sizes_.contains(start));
                  taken_ -= sizes_[start];
                  sizes_.erase(start);
                },
            .wait = [this] { ++waits_; }};
  }

  size_t limit_ = size_t{1} << 40;
  size_t taken_ = 0;
  int waits_ = 0;
  std::byte* next_ = reinterpret_cast<std::byte*>(uintptr_t{1} << 32);
  std::map<std::byte*, size_t> sizes_;
};

constexpr size_t kMiB = size_t{1} << 20;

TEST_F(SlabsTest, PiecesAreAlignedAndApart) {
  Slabs slabs(Source());
  std::byte* end = nullptr;
  for (const size_t bytes : {1, 255, 256, 257, 100'000}) {
    std::byte* const at = slabs.Allocate(bytes).value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % Slabs::kAlignment, 0u);
    EXPECT_GE(at, end);
    end = at + bytes;
  }
  EXPECT_EQ(sizes_.size(), 1u);
  EXPECT_EQ(slabs.Allocate(0).value(), nullptr);
}

// The weights of a mixture: 20,000 of 3.2 MB take little more than they are.
TEST_F(SlabsTest, ManySmallWeightsTakeTheirSumAndLittleMore) {
  Slabs slabs(Source());
  size_t sum = 0;
  for (int i = 0; i < 20'000; ++i) {
    const size_t bytes = 3'200'000 + (i % 7) * 1000;
    ASSERT_TRUE(slabs.Allocate(bytes));
    sum += bytes;
  }
  EXPECT_LT(static_cast<double>(taken_), 1.015 * static_cast<double>(sum));
  EXPECT_LT(sizes_.size(), sum / Slabs::kLargestSlab + 20);
}

TEST_F(SlabsTest, LargePiecesStandAlone) {
  Slabs slabs(Source());
  std::byte* const large = slabs.Allocate(500 * kMiB).value();
  EXPECT_EQ(taken_, 500 * kMiB);
  slabs.Free(large);
  EXPECT_EQ(taken_, 0u);
}

TEST_F(SlabsTest, WhatIsFreeIsGivenBackAfterWaitingForTheDevice) {
  Slabs slabs(Source());
  std::vector<std::byte*> pieces;
  for (int i = 0; i < 100; ++i) pieces.push_back(slabs.Allocate(10 * kMiB).value());
  EXPECT_EQ(waits_, 0);
  for (std::byte* piece : pieces) slabs.Free(piece);
  EXPECT_LE(taken_, Slabs::kSmallestSlab);
  EXPECT_GT(waits_, 0);
}

TEST_F(SlabsTest, AnEmptySlabIsUsedAgain) {
  Slabs slabs(Source());
  for (int i = 0; i < 1000; ++i) {
    std::byte* const a = slabs.Allocate(1000).value();
    std::byte* const b = slabs.Allocate(3000).value();
    slabs.Free(a);
    slabs.Free(b);
  }
  EXPECT_EQ(taken_, Slabs::kSmallestSlab);
  EXPECT_EQ(waits_, 1000);
}

// A slab may not fit any more where a piece still does.
TEST_F(SlabsTest, TheLastMemoryIsTakenPieceByPiece) {
  limit_ = 100 * kMiB;
  Slabs slabs(Source());
  size_t sum = 0;
  while (const auto piece = slabs.Allocate(3 * kMiB)) sum += 3 * kMiB;
  EXPECT_GE(sum, 90 * kMiB);
  const auto failed = slabs.Allocate(3 * kMiB);
  EXPECT_EQ(failed.error().code(), Code::kResourceExhausted);
}

}  // namespace
}  // namespace nibble
