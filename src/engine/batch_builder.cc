#include "engine/batch_builder.h"

#include <algorithm>

#include "engine/random.h"

namespace nibble::engine {

BatchBuilder::BatchBuilder(const StepLimits& limits, int32_t page_size, int64_t prompt_chunk,
                           bool prompts_apart, bool even_routing)
    : page_size_(page_size),
      prompt_chunk_(prompt_chunk),
      prompts_apart_(prompts_apart),
      even_routing_(even_routing) {
  tokens_.reserve(limits.max_tokens);
  positions_.reserve(limits.max_tokens);
  if (even_routing) even_keys_.reserve(limits.max_tokens);
  slots_.reserve(limits.max_tokens);
  q_start_.reserve(limits.max_sequences + 1);
  kv_len_.reserve(limits.max_sequences);
  page_table_.reserve(limits.max_sequences * limits.max_pages);
  logits_rows_.reserve(limits.max_rows());
  drawn_slots_.reserve(limits.max_rows());
  state_slots_.reserve(limits.max_sequences);
  chunked_.reserve(limits.max_sequences);
  prompt_tokens_.reserve(limits.max_sequences);
  rope_sets_.reserve(limits.max_sequences);
  sequences_.reserve(limits.max_sequences);
  rows_.reserve(limits.max_rows());
  Clear();
}

void BatchBuilder::Clear() {
  tokens_.clear();
  positions_.clear();
  even_keys_.clear();
  slots_.clear();
  q_start_.assign(1, 0);
  kv_len_.clear();
  page_table_.clear();
  logits_rows_.clear();
  drawn_slots_.clear();
  state_slots_.clear();
  chunked_.clear();
  prompt_tokens_.clear();
  rope_sets_.clear();
  sequences_.clear();
  rows_.clear();
}

void BatchBuilder::Add(Sequence& sequence, int64_t tokens) {
  const int64_t begin = sequence.computed;
  const int64_t end = begin + tokens;
  const bool collects = sequence.collects_prompt_logprobs();
  for (int64_t position = begin; position < end; ++position) {
    tokens_.push_back(sequence.tokens[position]);
    positions_.push_back(static_cast<int32_t>(position));
    if (even_routing_)
      even_keys_.push_back(EvenKey(sequence.request.seed, sequence.choice, position));
    const int64_t page = sequence.pages[position / page_size_];
    slots_.push_back(page * page_size_ + position % page_size_);
    const bool last = position == sequence.length() - 1;
    if (last && sequence.request.max_new_tokens > 0) {
      AddRow(sequence, position, true);
    } else if (collects && position < sequence.prompt_length - 1 &&
               position >= sequence.request.prompt_rows_done) {
      AddRow(sequence, position, false);
    }
  }
  q_start_.push_back(static_cast<int32_t>(tokens_.size()));
  kv_len_.push_back(static_cast<int32_t>(end));
  state_slots_.push_back(sequence.state_slot);
  chunked_.push_back(static_cast<int32_t>(sequence.ChunkedTokens(tokens, prompt_chunk_)));
  if (prompts_apart_) prompt_tokens_.push_back(static_cast<int32_t>(sequence.PromptTokens(tokens)));
  rope_sets_.push_back(sequence.long_rope ? 1 : 0);
  sequences_.push_back(&sequence);
}

void BatchBuilder::AddRow(Sequence& sequence, int64_t position, bool sample) {
  logits_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  drawn_slots_.push_back(sample ? sequence.drawn_slot : -1);
  rows_.push_back({&sequence, position, sample});
}

models::Batch BatchBuilder::Finish(const int32_t* drawn) {
  int64_t max_pages = 0;
  for (const Sequence* sequence : sequences_)
    max_pages = std::max(max_pages, static_cast<int64_t>(sequence->pages.size()));
  page_table_.assign(sequences_.size() * max_pages, 0);
  for (size_t b = 0; b < sequences_.size(); ++b)
    std::ranges::copy(sequences_[b]->pages,
                      page_table_.begin() + static_cast<int64_t>(b) * max_pages);
  models::Batch batch = {.tokens = tokens_,
                         .positions = positions_,
                         .slots = slots_,
                         .q_start = q_start_,
                         .kv_len = kv_len_,
                         .page_table = page_table_,
                         .max_pages = max_pages,
                         .logits_rows = logits_rows_,
                         .state_slots = state_slots_,
                         .prompt_tokens = prompt_tokens_,
                         .even_keys = even_keys_,
                         .drawn = drawn,
                         .rope_sets = rope_sets_,
                         .drawn_slots = drawn_slots_};
  for (const int32_t tokens : chunked_) {
    batch.chunked_sequences += tokens > 0 ? 1 : 0;
    batch.chunked_tokens += tokens;
  }
  if (batch.chunked_tokens > 0) batch.chunked = chunked_;
  return batch;
}

}  // namespace nibble::engine
