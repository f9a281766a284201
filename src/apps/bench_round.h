// Rounds of requests that nibble bench model measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace nibble::apps {

struct BenchShape {
  int64_t prompt = 0;
  int32_t batch = 0;
  int64_t context = 0;  // tokens assumed in the cache before the prompt

  int64_t length() const { return context + prompt; }
};

struct BenchSampling {
  double temperature = 0;
  double top_p = 1;
};

struct PromptRound {
  double seconds = 0;  // until every sequence has its first token
  // Of each sequence's last logits. A sequence's prompt does not depend on the batch, nor may this.
  std::vector<std::string> logits_hashes;
};

// `batch` prompts at once, each answered with so many tokens. Prompts follow from the seed.
Result<PromptRound> RunPrompts(engine::Engine& engine, const BenchSampling& sampling,
                               const BenchShape& shape, int64_t answer, uint32_t seed);

struct DecodeRound {
  double step_seconds = 0;  // of steps in which every sequence gets a token
};

// Decode steps alone: all tokens but each prompt's last count as computed, so that the sequences
// start together, and what counts lies between the first token of the last one to start and the
// last token of the first one. Experts are chosen by seeds 0, 1, ... (EngineOptions.even_routing).
Result<DecodeRound> RunDecode(engine::Engine& engine, const BenchSampling& sampling,
                              const BenchShape& shape, int64_t answer, uint32_t seed);

}  // namespace nibble::apps
