// PromptBudget: how many prompt tokens a step may hold beside answers, so that no answer waits long
// for its next token.
//
// It learns from what steps took. A step of p prompt tokens that took s seconds allows p * limit /
// s of them: since part of s does not depend on p, growing does not overshoot, and shrinking comes
// close in a few steps. Nothing is believed beyond twice what was measured, since kernels change
// with the number of tokens; and a step that was far from full makes nothing shrink, since what it
// took was not its prompt's. Where answers alone take long, prompts may add half of that; a single
// slow step does not make them slow (a device records a step's first shape). Pure but for its
// state; no threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/ops.h"

namespace nibble::engine {

class PromptBudget {
 public:
  // What a step may take. On a GPU token gaps stay below 60 ms, with room for the answers' own part
  // and for a host that is late; on a CPU a reader sees no long stop.
  static constexpr double kDeviceStepSeconds = 0.040;
  static constexpr double kHostStepSeconds = 0.500;
  static constexpr double kMostSlower = 1.5;  // than a step of answers alone, if that is slow
  static constexpr int64_t kLeast = 64;
  static constexpr int64_t kFirst = 128;  // before anything is known
  static_assert(kLeast >= kernels::kDeltaChunk,
                "a prompt that advances by chunks would stand still");

  PromptBudget(double step_seconds, int64_t max_tokens)
      : step_seconds_(step_seconds), max_tokens_(max_tokens) {}

  int64_t tokens() const { return std::min(tokens_, max_tokens_); }

  // A step with so many prompt tokens, or of answers alone, took so long.
  void Observe(int64_t prompt_tokens, double seconds) {
    if (seconds <= 0) return;
    if (prompt_tokens == 0) {
      answers_seconds_ = std::min(seconds, std::exchange(last_answers_seconds_, seconds));
      return;
    }
    answers_seconds_ = std::min(answers_seconds_, seconds);  // the step held the answers, too
    const double limit = std::max(step_seconds_, kMostSlower * answers_seconds_);
    const auto allowed =
        static_cast<int64_t>(std::min(static_cast<double>(prompt_tokens) * limit / seconds, 1e9));
    if (seconds <= limit) {
      tokens_ = std::max(tokens_, std::min(allowed, 2 * prompt_tokens));
    } else if (prompt_tokens >= tokens() / 2) {
      tokens_ = std::max(kLeast, std::min(tokens_, allowed));
    }
  }

 private:
  const double step_seconds_;
  const int64_t max_tokens_;
  int64_t tokens_ = kFirst;
  double answers_seconds_ = 0;       // of a step of answers alone, at most
  double last_answers_seconds_ = 0;  // of the last such step
};

}  // namespace nibble::engine
