// Drives a Model without an engine: sequences over a KvPool, in steps of any chunking, batching and
// page order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "models/model.h"

namespace nibble::testing {

// One sequence under test: its tokens, the pages it owns, and the logits row after every token.
struct RunnerSequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;
  int32_t slot = 0;                        // of the recurrent layers' states
  int64_t done = 0;                        // tokens already in the cache
  std::vector<std::vector<float>> logits;  // one row of V per computed token
};

class ModelRunner {
 public:
  ModelRunner(models::Model& model, models::KvPool& pool) : model_(model), pool_(pool) {}

  // Computes the next counts[i] tokens of each sequence in one step; all logits are kept.
  void Step(const std::vector<RunnerSequence*>& sequences, const std::vector<int64_t>& counts) {
    std::vector<int32_t> tokens, positions, q_start = {0}, kv_len, page_table, rows;
    std::vector<int64_t> slots;
    std::vector<int32_t> state_slots;
    std::vector<uint8_t> rope_sets;
    size_t max_pages = 1;
    for (const RunnerSequence* sequence : sequences)
      max_pages = std::max(max_pages, sequence->pages.size());
    for (size_t b = 0; b < sequences.size(); ++b) {
      const RunnerSequence& sequence = *sequences[b];
      for (int64_t i = sequence.done; i < sequence.done + counts[b]; ++i) {
        tokens.push_back(sequence.tokens[i]);
        positions.push_back(static_cast<int32_t>(i));
        slots.push_back(int64_t{sequence.pages[i / pool_.page_size()]} * pool_.page_size() +
                        i % pool_.page_size());
      }
      q_start.push_back(static_cast<int32_t>(tokens.size()));
      kv_len.push_back(static_cast<int32_t>(sequence.done + counts[b]));
      state_slots.push_back(sequence.slot);
      const int64_t border = model_.info().rope_border;
      const auto length = static_cast<int64_t>(sequence.tokens.size());
      rope_sets.push_back(border > 0 && length > border ? 1 : 0);
      std::vector<int32_t> row(max_pages, 0);
      std::copy(sequence.pages.begin(), sequence.pages.end(), row.begin());
      page_table.insert(page_table.end(), row.begin(), row.end());
    }
    rows.resize(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const int64_t v = model_.info().vocab_size;
    const float* logits = model_.Forward({.tokens = tokens,
                                          .positions = positions,
                                          .slots = slots,
                                          .q_start = q_start,
                                          .kv_len = kv_len,
                                          .page_table = page_table,
                                          .max_pages = static_cast<int64_t>(max_pages),
                                          .logits_rows = rows,
                                          .state_slots = state_slots,
                                          .rope_sets = rope_sets},
                                         pool_);
    int64_t row = 0;
    for (size_t b = 0; b < sequences.size(); ++b) {
      for (int64_t i = 0; i < counts[b]; ++i, ++row) {
        sequences[b]->logits.emplace_back(logits + row * v, logits + (row + 1) * v);
      }
      sequences[b]->done += counts[b];
    }
  }

  // All tokens of one sequence, `chunk` at a time.
  void Run(RunnerSequence& sequence, int64_t chunk) {
    const auto total = static_cast<int64_t>(sequence.tokens.size());
    while (sequence.done < total) Step({&sequence}, {std::min(chunk, total - sequence.done)});
  }

 private:
  models::Model& model_;
  models::KvPool& pool_;
};

}  // namespace nibble::testing
