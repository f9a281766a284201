// The arrays of one step, filled from chunks of sequences, and what each row of logits is for.
//
// Everything is allocated by the constructor for the largest step. Thread-safety: the engine
// thread's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/sequence.h"
#include "models/model.h"

namespace nibble::engine {

struct StepLimits {
  int64_t max_tokens = 0;       // T
  int64_t max_sequences = 0;    // B
  int64_t max_pages = 0;        // of one sequence
  int64_t max_prompt_rows = 0;  // for prompt log-probabilities
  int64_t max_rows() const { return max_sequences + max_prompt_rows; }  // R
  models::MaxStep max_step() const {
    return {
        .tokens = max_tokens, .rows = max_rows(), .sequences = max_sequences, .pages = max_pages};
  }
};

// Row r of the logits belongs to the token at `position` of `sequence`. `sample`: the next token is
// drawn from it; else it scores the prompt token that follows.
struct LogitsRow {
  Sequence* sequence = nullptr;
  int64_t position = 0;
  bool sample = false;
};

class BatchBuilder {
 public:
  // prompt_chunk: models::PromptChunk; prompts_apart: ModelInfo.prompt_forms; even_routing:
  // EngineOptions.even_routing.
  BatchBuilder(const StepLimits& limits, int32_t page_size, int64_t prompt_chunk,
               bool prompts_apart, bool even_routing);

  void Clear();
  // The next `tokens` tokens of the sequence after its computed ones; it holds their pages.
  void Add(Sequence& sequence, int64_t tokens);
  // Completes the page table. Valid until Clear. drawn: Sampler::drawn.
  models::Batch Finish(const int32_t* drawn);

  std::span<const LogitsRow> rows() const { return rows_; }
  int64_t tokens() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  void AddRow(Sequence& sequence, int64_t position, bool sample);

  const int32_t page_size_;
  const int64_t prompt_chunk_;
  const bool prompts_apart_;
  const bool even_routing_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> positions_;
  std::vector<uint32_t> even_keys_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> q_start_;
  std::vector<int32_t> kv_len_;
  std::vector<int32_t> page_table_;
  std::vector<int32_t> logits_rows_;
  std::vector<int32_t> drawn_slots_;
  std::vector<int32_t> state_slots_;
  std::vector<int32_t> chunked_;
  std::vector<int32_t> prompt_tokens_;
  std::vector<uint8_t> rope_sets_;
  std::vector<Sequence*> sequences_;
  std::vector<LogitsRow> rows_;
};

}  // namespace nibble::engine
