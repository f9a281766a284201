#include "engine/prompt_budget.h"

#include <gtest/gtest.h>

namespace nibble::engine {
namespace {

constexpr double kLimit = PromptBudget::kDeviceStepSeconds;

// Steps of a device that takes `base` + `each` * tokens; how many it takes until the budget holds.
void Converge(PromptBudget& budget, double base, double each, int64_t prompt) {
  for (int step = 0; step < 20; ++step) {
    const int64_t tokens = std::min(prompt, budget.tokens());
    const double seconds = base + each * static_cast<double>(tokens);
    EXPECT_LT(seconds, kLimit * 1.01) << "step " << step;
    budget.Observe(tokens, seconds);
  }
}

TEST(PromptBudget, GrowsToWhatAStepMayTakeAndNotBeyond) {
  PromptBudget budget(kLimit, 8192);
  EXPECT_EQ(budget.tokens(), PromptBudget::kFirst);
  Converge(budget, 5e-3, 2e-5, 1 << 20);
  EXPECT_GT(budget.tokens(), 1650);  // 1,750 take 40 ms
  Converge(budget, 5e-3, 2e-5, 10);
  EXPECT_GT(budget.tokens(), 1650) << "short prompts say nothing about long ones";
}

TEST(PromptBudget, ShrinksWhenStepsTakeLonger) {
  PromptBudget budget(kLimit, 8192);
  budget.Observe(8192, 0.34);  // alone in its step
  EXPECT_EQ(budget.tokens(), PromptBudget::kFirst)
      << "slower than allowed, but no reason to shrink";
  Converge(budget, 5e-3, 4e-5, 1 << 20);
  for (int step = 0; step < 6; ++step)
    budget.Observe(budget.tokens(), 15e-3 + 8e-5 * static_cast<double>(budget.tokens()));
  EXPECT_LT(15e-3 + 8e-5 * static_cast<double>(budget.tokens()), 0.041);
  for (int step = 0; step < 20; ++step) budget.Observe(budget.tokens(), 1.0);
  EXPECT_EQ(budget.tokens(), PromptBudget::kLeast) << "prompts always go on";
}

TEST(PromptBudget, SlowAnswersAndShortTailsDoNotStarvePrompts) {
  PromptBudget budget(kLimit, 8192);
  Converge(budget, 5e-3, 2e-5, 1 << 20);
  const int64_t grown = budget.tokens();
  budget.Observe(3, 0.2);
  EXPECT_EQ(budget.tokens(), grown) << "three tokens are not what made the step slow";
  // Answers alone take longer than a step should: prompts add half of that.
  for (int step = 0; step < 20; ++step) {
    budget.Observe(0, 0.05);
    budget.Observe(budget.tokens(), 0.05 + 2e-5 * static_cast<double>(budget.tokens()));
  }
  EXPECT_NEAR(static_cast<double>(budget.tokens()), 0.025 / 2e-5, 50);
}

TEST(PromptBudget, OneSlowStepOfAnswersDoesNotLiftTheLimit) {
  PromptBudget budget(kLimit, 8192);
  Converge(budget, 5e-3, 2e-5, 1 << 20);
  budget.Observe(0, 5e-3);
  budget.Observe(0, 1.5);  // records a shape
  Converge(budget, 5e-3, 2e-5, 1 << 20);
  // Two were slow; then a step with a prompt shows what answers take at most.
  budget.Observe(0, 1.5);
  budget.Observe(0, 1.5);
  for (int step = 0; step < 20; ++step) {
    const double seconds = 5e-3 + 2e-5 * static_cast<double>(budget.tokens());
    EXPECT_LT(seconds, PromptBudget::kMostSlower * kLimit * 1.01);
    budget.Observe(budget.tokens(), seconds);
  }
}

TEST(PromptBudget, NeverMoreThanAStepHolds) {
  PromptBudget budget(PromptBudget::kHostStepSeconds, 16);
  EXPECT_EQ(budget.tokens(), 16);
  for (int step = 0; step < 5; ++step) budget.Observe(16, 1e-3);
  EXPECT_EQ(budget.tokens(), 16);
}

}  // namespace
}  // namespace nibble::engine
