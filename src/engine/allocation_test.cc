// After warm-up a decode step allocates nothing but the events that it hands out.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "engine/testing/workload.h"

namespace {
std::atomic<int64_t> allocations{0};

void* CountedAllocate(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t bytes) { return CountedAllocate(bytes); }
void* operator new[](std::size_t bytes) { return CountedAllocate(bytes); }
// AddressSanitizer insists that these match the deletes below.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace nibble::engine {
namespace {

void SampleOne(const kernels::OpContext&, const kernels::SampleParams& params) {
  for (size_t row = 0; row < params.rows.size(); ++row) params.out[row] = {.token = 1};
}

// Computes nothing and allocates nothing.
class QuietModel : public models::Model {
 public:
  QuietModel() {
    info_.vocab_size = 8;
    info_.max_positions = 4096;
    info_.kv = {{.kv_heads = 1, .head_dim = 8}};
    ops_.device = &HostDevice();
    ops_.sample = &SampleOne;
  }
  const models::ModelInfo& info() const override { return info_; }
  int64_t ActivationBytes(const models::MaxStep&) const override { return 0; }
  Status Prepare(const models::MaxStep&) override { return {}; }
  const float* Forward(const models::Batch& batch, const models::KvPool&) override {
    if (batch.tail != nullptr) batch.tail->Launch(logits_, batch.drawn_slots.data());
    return logits_;
  }
  const kernels::OpTable& ops() const override { return ops_; }

 private:
  models::ModelInfo info_;
  kernels::OpTable ops_;
  float logits_[8] = {};
};

class SilentSink : public EventSink {
 public:
  void Post(StreamEvent) noexcept override {}
};

class Allocation : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(LaunchedAhead, Allocation, ::testing::Bool());

TEST_P(Allocation, ADecodeStepAllocatesItsEventsAlone) {
  constexpr int kSequences = 8;
  QuietModel model;
  CoreRunner runner(model, nullptr,
                    {.pages = 400, .max_model_len = 600, .launches_ahead = GetParam()});
  for (int i = 0; i < kSequences; ++i) {
    Request request;
    request.tokens.assign(20, i % 8);
    request.sampling.max_tokens = 500;
    request.sink = std::make_shared<SilentSink>();
    runner.Add(std::move(request));
  }
  for (int step = 0; step < 50; ++step) runner.Step();
  ASSERT_EQ(runner.core->stats().running, kSequences);
  const int64_t before = allocations.load();
  constexpr int kSteps = 200;  // across page borders
  for (int step = 0; step < kSteps; ++step) runner.Step();
  // The ids of each delta.
  EXPECT_EQ(allocations.load() - before, kSteps * kSequences);
}

}  // namespace
}  // namespace nibble::engine
