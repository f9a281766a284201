#include "models/step_graphs.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "models/testing/posing_device.h"

namespace nibble::models {
namespace {

// Records by keeping the function.
class RecordingDevice final : public testing::PosingDevice {
 public:
  struct Graph final : DeviceGraph {
    Graph(RecordingDevice& device, std::function<void()> launch)
        : device(device), launch(std::move(launch)) {
      ++device.alive;
    }
    ~Graph() override { --device.alive; }
    void Launch() override {
      ++device.replayed;
      launch();
    }
    RecordingDevice& device;
    std::function<void()> launch;
  };

  std::unique_ptr<DeviceGraph> Record(const std::function<void()>& launch) override {
    ++recorded;
    if (full) return nullptr;
    return std::make_unique<Graph>(*this, launch);
  }

  int recorded = 0, replayed = 0;
  size_t alive = 0;
  bool full = false;
};

class StepGraphsTest : public ::testing::Test {
 protected:
  StepGraphsTest() : tokens_(StepGraphs::kMaxTokens + 1) {
    ops_.device = &device_;
    ops_.recordable = true;
    std::iota(tokens_.begin(), tokens_.end(), 0);
  }
  // A decode step of so many sequences.
  void Step(int64_t sequences) {
    const std::span<const int32_t> each = std::span(tokens_).first(sequences);
    graphs_.Run(ops_, {.tokens = each, .kv_len = each}, kv_, [this] { ++ran_; });
  }

  RecordingDevice device_;
  kernels::OpTable ops_;
  KvPool kv_;
  StepGraphs graphs_;
  std::vector<int32_t> tokens_;
  int ran_ = 0;
};

TEST_F(StepGraphsTest, TheSecondStepOfAShapeIsRecordedAndLaterOnesReplayed) {
  for (int step = 0; step < 5; ++step) Step(3);
  EXPECT_EQ(ran_, 5);
  EXPECT_EQ(device_.recorded, 1);
  EXPECT_EQ(device_.replayed, 4);
  Step(StepGraphs::kMaxTokens + 1);
  Step(StepGraphs::kMaxTokens + 1);
  EXPECT_EQ(device_.recorded, 1) << "large steps are not";
  EXPECT_EQ(ran_, 7);
}

TEST_F(StepGraphsTest, TailsAndPickedRowsBelongToTheShape) {
  struct Tail final : StepTail {
    void Launch(const float*, const int32_t*) override {}
    const void* key() const override { return this; }
  };
  Tail first, second;
  const std::span<const int32_t> each = std::span(tokens_).first(2);
  const auto step = [&](StepTail* tail, bool all_rows) {
    graphs_.Run(
        ops_,
        {.tokens = each, .kv_len = each, .logits_rows = each, .all_rows = all_rows, .tail = tail},
        kv_, [this] { ++ran_; });
  };
  for (StepTail* tail : {static_cast<StepTail*>(nullptr), static_cast<StepTail*>(&first),
                         static_cast<StepTail*>(&second)})
    for (const bool all_rows : {false, true}) step(tail, all_rows), step(tail, all_rows);
  EXPECT_EQ(device_.recorded, 6);
  step(&first, true);
  EXPECT_EQ(device_.recorded, 6);
}

TEST_F(StepGraphsTest, TheShapesUsedLastKeepTheirRecordings) {
  const auto most = static_cast<int64_t>(StepGraphs::kMostShapes);
  for (int64_t n = 1; n <= most; ++n) Step(n), Step(n);
  EXPECT_EQ(device_.alive, StepGraphs::kMostShapes);
  Step(1);
  Step(most + 1);  // in the place of 2
  EXPECT_EQ(device_.alive, StepGraphs::kMostShapes - 1);
  const int recorded = device_.recorded;
  Step(1);
  EXPECT_EQ(device_.recorded, recorded);
  Step(2), Step(2);
  EXPECT_EQ(device_.recorded, recorded + 1);
}

TEST_F(StepGraphsTest, WithoutMemoryForARecordingStepsGoOnAsTheyAre) {
  device_.full = true;
  for (int step = 0; step < 5; ++step) Step(3);
  EXPECT_EQ(ran_, 5);
  EXPECT_EQ(device_.recorded, 1) << "not tried at every step";
}

}  // namespace
}  // namespace nibble::models
