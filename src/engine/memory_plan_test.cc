#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include <string>

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

// The plan says which rule set the KV cache and which flag changes it.
void ExpectRule(const MemoryPlan& plan, KvSizeRule rule, const std::string& said) {
  EXPECT_EQ(static_cast<int>(plan.kv_rule), static_cast<int>(rule));
  EXPECT_NE(plan.ToString().find(said), std::string::npos) << plan.ToString();
}

TEST(MemoryPlan, HoldsSequencesOfAUsualLength) {
  const auto plan = PlanMemory(Input(), {.max_sequences = 64, .memory_fraction = 0.9});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_EQ(plan->max_model_len, 8192);
  EXPECT_EQ(plan->kv_tokens, 64 * 1024);
  EXPECT_EQ(plan->kv_bytes, 64 * kMiB);
  EXPECT_EQ(plan->available_bytes, 1000 * kMiB);
  ExpectRule(*plan, KvSizeRule::kSequences, "64 (--max-num-seqs) sequences of 1024");

  const auto small = PlanMemory(Input(), {.max_model_len = 100, .max_sequences = 64});
  ASSERT_TRUE(small);
  EXPECT_EQ(small->kv_tokens, 64 * 112);  // whole pages
  ExpectRule(*small, KvSizeRule::kSequences, "sequences of 100");
}

TEST(MemoryPlan, HoldsOneWholeContextAtLeast) {
  const auto plan = PlanMemory(Input(), {.max_sequences = 4});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv_tokens, 8192);
  ExpectRule(*plan, KvSizeRule::kContext, "--max-model-len");
}

TEST(MemoryPlan, TakesHalfOfTheMemoryByDefaultAndMoreForAContextThatIsAskedFor) {
  MemoryPlanInput input = Input();
  input.max_positions = 1 << 20;
  const auto plan = PlanMemory(input, {.memory_fraction = 0.9});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv_bytes, (1000 - 150) / 2 * kMiB);
  EXPECT_EQ(plan->max_model_len, plan->kv_tokens);
  ExpectRule(*plan, KvSizeRule::kShare, "50 %");
  ExpectRule(*plan, KvSizeRule::kShare, "the model's: 1048576");

  const auto asked = PlanMemory(input, {.max_model_len = 700 << 10, .memory_fraction = 0.9});
  ASSERT_TRUE(asked) << asked.error().message();
  EXPECT_EQ(asked->kv_tokens, 700 << 10);
  EXPECT_EQ(asked->max_model_len, 700 << 10);
  ExpectRule(*asked, KvSizeRule::kContext, "--kv-cache-memory-bytes");

  const auto more = PlanMemory(input, {.max_sequences = 4096, .memory_fraction = 0.9});
  ASSERT_TRUE(more);
  EXPECT_EQ(more->kv_bytes, plan->kv_bytes);
}

TEST(MemoryPlan, NeverExceedsTheFraction) {
  const auto plan = PlanMemory(Input(), {.max_sequences = 1000, .memory_fraction = 0.5});
  ASSERT_TRUE(plan);
  EXPECT_LE(plan->weight_bytes + plan->activation_bytes + plan->kv_bytes, 500 * kMiB);
  EXPECT_GE(plan->kv_bytes, 349 * kMiB);
  EXPECT_EQ(plan->max_model_len, 8192);
  ExpectRule(*plan, KvSizeRule::kMemory, "--gpu-memory-utilization");
}

TEST(MemoryPlan, ShortensTheContextToWhatFits) {
  MemoryPlanInput input = Input();
  input.available_bytes = 60 * kMiB;
  const auto plan = PlanMemory(input, {.memory_fraction = 0.97});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_LT(plan->max_model_len, 8192);
  EXPECT_EQ(plan->kv_tokens, plan->max_model_len);
  EXPECT_NE(plan->ToString().find("the model's: 8192"), std::string::npos);
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
  ExpectRule(*plan, KvSizeRule::kOption, "as --kv-cache-memory-bytes says");

  const auto large = PlanMemory(Input(), {.max_sequences = 1, .kv_bytes = 700 * kMiB});
  ASSERT_TRUE(large);
  EXPECT_EQ(large->kv_bytes, 700 * kMiB);
  EXPECT_EQ(large->max_model_len, 8192);
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

// Nobody else uses a GPU's own memory: all of it that the fraction allows, if sequences can fill
// it.
TEST(MemoryPlan, TakesDedicatedMemoryForWholeContexts) {
  MemoryPlanInput input = Input();
  input.dedicated = true;
  const auto plan = PlanMemory(input, {.max_sequences = 64, .memory_fraction = 0.9});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_EQ(plan->kv_tokens, 64 * 8192);
  ExpectRule(*plan, KvSizeRule::kSequences, "64 (--max-num-seqs) sequences of 8192");

  input.max_positions = 1 << 17;
  const auto full = PlanMemory(input, {.max_sequences = 64, .memory_fraction = 0.9});
  ASSERT_TRUE(full);
  EXPECT_EQ(full->kv_bytes, (900 - 150) * kMiB);
  EXPECT_EQ(full->max_model_len, 1 << 17);
  ExpectRule(*full, KvSizeRule::kMemory, "--gpu-memory-utilization");
}

// On a GPU as many as the activations' share allows; a CPU takes what it always takes.
TEST(MemoryPlan, StepsAreAsLargeAsDeviceAndMemoryAllow) {
  int64_t bytes_per_token = kMiB / 100;
  const auto tokens = [&](bool on_host) {
    return DefaultStepTokens(on_host, Input(), 0.9,
                             [&](int32_t tokens) { return tokens * bytes_per_token; });
  };
  EXPECT_EQ(tokens(false), 8192) << "80 of the 800 MiB beside the weights";
  EXPECT_EQ(tokens(true), 512);
  bytes_per_token = kMiB / 30;
  EXPECT_EQ(tokens(false), 2048);
  bytes_per_token = kMiB;
  EXPECT_EQ(tokens(false), 512) << "the least, and the plan says what is missing";

  const auto plan = PlanMemory(Input(), {.max_step_tokens = 2048});
  ASSERT_TRUE(plan);
  EXPECT_NE(plan->ToString().find("of steps of 2048 tokens (--max-num-batched-tokens)"),
            std::string::npos);
}

// Recurrent layers: a state per sequence first, then snapshots within their share, then the KV
// cache.
TEST(MemoryPlan, RecurrentStatesComeBeforeTheKvCache) {
  MemoryPlanInput input = Input();
  input.state_bytes = 10 * kMiB;
  const auto plan = PlanMemory(input, {.max_sequences = 20, .memory_fraction = 0.9});
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_EQ(plan->live_states, 20);
  EXPECT_EQ(plan->snapshots, 9) << "an eighth of 750 MiB";
  EXPECT_EQ(plan->kv_tokens, 20 * 1024);
  EXPECT_NE(plan->ToString().find("20 of running sequences"), std::string::npos);

  const auto without =
      PlanMemory(input, {.max_sequences = 20, .memory_fraction = 0.9, .prefix_cache = false});
  ASSERT_TRUE(without);
  EXPECT_EQ(without->snapshots, 0);

  const auto many = PlanMemory(input, {.max_sequences = 100, .memory_fraction = 0.9});
  ASSERT_FALSE(many);
  EXPECT_EQ(many.error().code(), Code::kResourceExhausted);
  EXPECT_NE(many.error().message().find("--max-num-seqs 37"), std::string::npos)
      << many.error().message();
}

TEST(CheckWeightsFit, SaysWhatIsMissingAndWhatWouldHelp) {
  const WeightsInput input = {
      .weight_bytes = 920 * kMiB, .device = "cuda:0", .available_bytes = 1000 * kMiB};
  EXPECT_TRUE(CheckWeightsFit(input, 0.95));
  const Status fraction = CheckWeightsFit(input, 0.9);
  ASSERT_FALSE(fraction);
  EXPECT_EQ(fraction.error().code(), Code::kResourceExhausted);
  for (const char* part : {"20.0 MiB more", "cuda:0", "--gpu-memory-utilization (now 0.9)"})
    EXPECT_NE(fraction.error().message().find(part), std::string::npos)
        << fraction.error().message();

  WeightsInput small = input;
  small.available_bytes = 500 * kMiB;
  small.host_available_bytes = 2000 * kMiB;
  EXPECT_NE(CheckWeightsFit(small, 0.9).error().message().find("--device cpu"), std::string::npos);
  small.host_available_bytes = 0;
  EXPECT_NE(CheckWeightsFit(small, 0.9).error().message().find("nibble quantize"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::engine
