// Loading side by side.
#include "models/load_jobs.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <string>

#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "models/testing/posing_device.h"
#include "testing/model_runner.h"

namespace nibble::models {
namespace {

using nibble::testing::ModelRunner;
using nibble::testing::RunnerSequence;
using testing::PosingDevice;

TEST(LoadJobs, RunAtOnceOnTheHost) {
  ThreadPool pool(2);
  LoadJobs jobs(HostDevice(), pool);
  int done = 0;
  EXPECT_TRUE(jobs.Add(1, [&](UploadLane* lane) {
    EXPECT_EQ(lane, nullptr);
    ++done;
    return Status();
  }));
  EXPECT_EQ(done, 1);
  EXPECT_FALSE(jobs.Add(1, [](UploadLane*) -> Status { return Fail(Code::kCorruption, "bad"); }));
  EXPECT_TRUE(jobs.Run());
}

TEST(LoadJobs, AllRunOnceAndTheLanesFinish) {
  ThreadPool pool(3);
  PosingDevice device;
  LoadJobs jobs(device, pool);
  std::vector<std::atomic<int>> done(100);
  for (size_t i = 0; i < done.size(); ++i) {
    ASSERT_TRUE(jobs.Add(static_cast<int64_t>(i) << 24, [&done, i](UploadLane* lane) {
      EXPECT_NE(lane, nullptr);
      ++done[i];
      return Status();
    }));
  }
  EXPECT_EQ(done[0], 0);
  EXPECT_TRUE(jobs.Run());
  for (const auto& count : done) EXPECT_EQ(count, 1);
  EXPECT_EQ(device.lanes, 3);
  EXPECT_EQ(device.finished, 3);
}

TEST(LoadJobs, TheErrorIsThatOfTheFirstJobThatFails) {
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool(4);
    PosingDevice device;
    LoadJobs jobs(device, pool);
    for (int i = 0; i < 200; ++i) {
      ASSERT_TRUE(jobs.Add(1, [i](UploadLane*) -> Status {
        if (i == 37 || i == 38 || i == 150) return Fail(Code::kCorruption, "job {}", i);
        return {};
      }));
    }
    const Status status = jobs.Run();
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().message(), "job 37");
  }
}

TEST(LoadJobs, ADeviceThatFailsOrHasNoMemoryIsAnError) {
  ThreadPool pool(2);
  PosingDevice device;
  LoadJobs jobs(device, pool);
  device.no_memory = true;
  ASSERT_TRUE(jobs.Add(1, [](UploadLane*) { return Status(); }));
  EXPECT_EQ(jobs.Run().error().code(), Code::kResourceExhausted);
  device.no_memory = false;
  device.failed = "an illegal memory access";
  ASSERT_TRUE(jobs.Add(1, [](UploadLane*) { return Status(); }));
  EXPECT_NE(jobs.Run().error().message().find("illegal"), std::string::npos);
}

// The weights of every tiny model.
TEST(LoadJobs, SideBySideGivesTheSameModel) {
  ThreadPool pool(4);
  PosingDevice device;
  kernels::OpTable posing = kernels::CpuOps();
  posing.device = &device;
  for (const Architecture& architecture : RegisteredArchitectures()) {
    const auto config = boost::json::parse(architecture.tiny_configs.front()).as_object();
    std::vector<std::vector<float>> logits[2];
    std::string summary[2];
    for (const int side : {0, 1}) {
      const auto checkpoint =
          MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kNvfp4}).value();
      auto model =
          LoadModel(*checkpoint, {.ops = side == 0 ? &kernels::CpuOps() : &posing, .pool = &pool});
      ASSERT_TRUE(model) << model.error().message();
      ASSERT_TRUE((*model)->Prepare({.tokens = 32, .rows = 32}));
      auto kv = KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, 16, 2, 1,
                               *(*model)->ops().device);
      ASSERT_TRUE(kv);
      RunnerSequence sequence{.tokens = std::vector<int32_t>(20), .pages = {1, 0}};
      std::iota(sequence.tokens.begin(), sequence.tokens.end(), 3);
      ModelRunner(**model, *kv).Run(sequence, 32);
      logits[side] = sequence.logits;
      const ModelInfo& info = (*model)->info();
      summary[side] = fmt::format("{}; {} {} {}", info.weight_summary, info.weight_bytes,
                                  info.bytes_per_token, info.active_parameters);
    }
    EXPECT_EQ(logits[0], logits[1]) << architecture.architectures.front();
    EXPECT_EQ(summary[0], summary[1]);
  }
  EXPECT_GT(device.lanes, 0);
}

// Counts how often it was told to leave the page cache.
class Counting final : public formats::Checkpoint {
 public:
  explicit Counting(const formats::Checkpoint& of) : of_(of) {
    path_ = of.path();
    config_ = of.config();
    SetTensors({of.tensors().begin(), of.tensors().end()});
  }
  Result<std::string> ReadText(std::string_view name) const override { return of_.ReadText(name); }
  using Checkpoint::Read;
  Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
    return of_.Read(*of_.Find(entry.name));
  }
  void DropBehind(bool page_cache) const override {
    EXPECT_TRUE(page_cache);
    ++drops;
  }

  mutable std::atomic<int> drops = 0;

 private:
  const formats::Checkpoint& of_;
};

TEST(LoadJobs, FilesAreDroppedBehindTheCopyWhereTheDeviceSharesTheHostsMemory) {
  ThreadPool pool(2);
  PosingDevice device;
  kernels::OpTable posing = kernels::CpuOps();
  posing.device = &device;
  const auto config =
      boost::json::parse(RegisteredArchitectures().front().tiny_configs.front()).as_object();
  const auto dummy = MakeDummyCheckpoint(config).value();
  int64_t stored = 0;
  for (const formats::TensorEntry& entry : dummy->tensors()) stored += entry.stored_bytes;
  const kernels::OpTable* const tables[] = {&posing, &kernels::CpuOps()};
  for (const kernels::OpTable* ops : tables) {
    const Counting checkpoint(*dummy);
    const auto model =
        LoadModel(checkpoint, {.ops = ops, .pool = &pool, .drop_behind_bytes = stored / 10});
    ASSERT_TRUE(model) << model.error().message();
    if (ops == &posing) {
      EXPECT_GE(checkpoint.drops, 5);
      EXPECT_LE(checkpoint.drops, 10);
    } else {
      EXPECT_EQ(checkpoint.drops, 0);
    }
  }
}

}  // namespace
}  // namespace nibble::models
