#include "engine/memory_plan.h"

#include <gtest/gtest.h>

namespace nibble::engine {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

MemoryPlanInput Input() {
  return {.available_bytes = 900 * kMiB,
          .weight_bytes = 100 * kMiB,
          .activation_bytes = 50 * kMiB,
          .kv_bytes_per_token = 1024,
          .max_positions = 8192};
}

TEST(MemoryPlan, HoldsAContextPerSequenceWhenThereIsRoom) {
  const auto plan = PlanMemory(Input(), {.max_sequences = 4, .memory_fraction = 0.9});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_EQ(plan->max_model_len, 8192);
  EXPECT_EQ(plan->kv_tokens, 4 * 8192);
  EXPECT_EQ(plan->kv_bytes, 4 * 8 * kMiB);
  EXPECT_EQ(plan->available_bytes, 1000 * kMiB);
}

TEST(MemoryPlan, NeverExceedsTheFraction) {
  const auto plan = PlanMemory(Input(), {.max_sequences = 1000, .memory_fraction = 0.5});
  ASSERT_TRUE(plan);
  EXPECT_LE(plan->weight_bytes + plan->activation_bytes + plan->kv_bytes, 500 * kMiB);
  EXPECT_GE(plan->kv_bytes, 349 * kMiB);
  EXPECT_EQ(plan->max_model_len, 8192);
}

TEST(MemoryPlan, ShortensTheContextToWhatFits) {
  MemoryPlanInput input = Input();
  input.available_bytes = 72 * kMiB;
  const auto plan = PlanMemory(input, {.memory_fraction = 0.9});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_LT(plan->max_model_len, 8192);
  EXPECT_EQ(plan->kv_tokens, plan->max_model_len);
  EXPECT_NE(plan->ToString().find("KV cache"), std::string::npos);
}

TEST(MemoryPlan, ErrorsSayWhatIsMissingAndWhatWouldFit) {
  MemoryPlanInput input = Input();
  input.available_bytes = 72 * kMiB;
  const auto plan = PlanMemory(input, {.max_model_len = 8192, .memory_fraction = 0.9});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code(), Code::kResourceExhausted);
  const std::string& message = plan.error().message();
  const auto at = message.find("--max-model-len ");
  ASSERT_NE(at, std::string::npos) << message;
  const int64_t fits = std::stoll(message.substr(at + 16));
  EXPECT_TRUE(PlanMemory(input, {.max_model_len = fits, .memory_fraction = 0.9})) << message;

  const auto large = PlanMemory(Input(), {.kv_bytes = 2000 * kMiB});
  ASSERT_FALSE(large);
  EXPECT_NE(large.error().message().find("--kv-cache-memory-bytes"), std::string::npos);

  input.available_bytes = 0;
  EXPECT_FALSE(PlanMemory(input, {.memory_fraction = 0.9}));
}

TEST(MemoryPlan, TakesTheKvBytesAsGiven) {
  const auto plan = PlanMemory(Input(), {.kv_bytes = 3 * kMiB});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv_bytes, 3 * kMiB);
  EXPECT_EQ(plan->max_model_len, 3072);
}

TEST(CheckOptions, NamesFlagValueAndRange) {
  const auto fails = [](EngineOptions options, const char* flag) {
    const Status status = CheckOptions(options, 8192);
    EXPECT_FALSE(status);
    if (!status) {
      EXPECT_NE(status.error().message().find(flag), std::string::npos);
    }
  };
  EXPECT_TRUE(CheckOptions({}, 8192));
  fails({.page_size = 24}, "--block-size 24");
  fails({.page_size = 0}, "--block-size 0");
  fails({.max_sequences = 0}, "--max-num-seqs 0");
  fails({.max_step_tokens = 1}, "--max-num-batched-tokens 1");
  fails({.memory_fraction = 1.5}, "--gpu-memory-utilization 1.5");
  fails({.max_model_len = 8193}, "--max-model-len 8193");
  fails({.kv_bytes = -1}, "--kv-cache-memory-bytes -1");
}

}  // namespace
}  // namespace nibble::engine
