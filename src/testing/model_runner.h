// Drives a Model without an engine: sequences over a KvPool, in steps of any chunking, batching and
// page order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "models/model.h"

namespace nibble::testing {

// One sequence under test: its tokens, the pages it owns, and the logits row after every token.
struct RunnerSequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;
  int32_t slot = 0;                              // of the recurrent layers' states
  int64_t prompt = 0;                            // leading tokens that are its prompt
  int64_t done = 0;                              // tokens already in the cache
  std::vector<std::vector<float>> logits;        // one row of V per computed token
  std::vector<std::vector<float>> draft_logits;  // the same of the draft head
};

class ModelRunner {
 public:
  ModelRunner(models::Model& model, models::KvPool& pool) : model_(model), pool_(pool) {}

  // Computes the next counts[i] tokens of each sequence in one step; all logits are kept.
  void Step(const std::vector<RunnerSequence*>& sequences, const std::vector<int64_t>& counts) {
    std::vector<Rows> rows;
    for (size_t b = 0; b < sequences.size(); ++b) {
      rows.push_back(RowsOf(*sequences[b], sequences[b]->done, counts[b], 0));
      sequences[b]->done += counts[b];
    }
    const Arrays arrays(rows, model_.info(), pool_.page_size());
    Keep(model_.Forward(arrays.batch(), pool_), rows, &RunnerSequence::logits);
  }

  // After a Step with the same arguments: the draft head's pass over its positions, each with the
  // token that follows it.
  void StepDraft(const std::vector<RunnerSequence*>& sequences,
                 const std::vector<int64_t>& counts) {
    std::vector<Rows> rows;
    for (size_t b = 0; b < sequences.size(); ++b)
      rows.push_back(RowsOf(*sequences[b], sequences[b]->done - counts[b], counts[b], 1));
    Draft(rows, model_.hidden());
  }

  // A further draft from row `row` of the last pass: `token` at `position`.
  void ContinueDraft(RunnerSequence& sequence, int32_t token, int64_t position, int64_t row) {
    Draft({{&sequence, position, {token}}}, model_.hidden() + row * model_.info().hidden_size);
  }

  // All tokens of one sequence, `chunk` at a time.
  void Run(RunnerSequence& sequence, int64_t chunk) {
    const auto total = static_cast<int64_t>(sequence.tokens.size());
    while (sequence.done < total) Step({&sequence}, {std::min(chunk, total - sequence.done)});
  }

 private:
  // Consecutive positions of a sequence, from `first` on.
  struct Rows {
    RunnerSequence* sequence;
    int64_t first;
    std::vector<int32_t> tokens;
  };

  // The arrays that a Batch points at.
  struct Arrays {
    std::vector<int32_t> tokens, positions, q_start = {0}, kv_len, page_table, logits_rows;
    std::vector<int64_t> slots;
    std::vector<int32_t> state_slots;
    std::vector<int32_t> prompt_tokens;
    std::vector<uint8_t> rope_sets;
    size_t max_pages = 1;

    Arrays(const std::vector<Rows>& rows, const models::ModelInfo& info, int32_t page_size) {
      for (const Rows& r : rows) max_pages = std::max(max_pages, r.sequence->pages.size());
      for (const Rows& r : rows) Append(r, info.rope_border, page_size);
      logits_rows.resize(tokens.size());
      std::iota(logits_rows.begin(), logits_rows.end(), 0);
    }

    void Append(const Rows& rows, int64_t rope_border, int32_t page_size) {
      const RunnerSequence& sequence = *rows.sequence;
      for (size_t i = 0; i < rows.tokens.size(); ++i) {
        const auto position = rows.first + static_cast<int64_t>(i);
        tokens.push_back(rows.tokens[i]);
        positions.push_back(static_cast<int32_t>(position));
        slots.push_back(int64_t{sequence.pages[position / page_size]} * page_size +
                        position % page_size);
      }
      q_start.push_back(static_cast<int32_t>(tokens.size()));
      kv_len.push_back(static_cast<int32_t>(rows.first + static_cast<int64_t>(rows.tokens.size())));
      state_slots.push_back(sequence.slot);
      prompt_tokens.push_back(static_cast<int32_t>(std::clamp<int64_t>(
          sequence.prompt - rows.first, 0, static_cast<int64_t>(rows.tokens.size()))));
      const auto length = static_cast<int64_t>(sequence.tokens.size());
      rope_sets.push_back(rope_border > 0 && length > rope_border ? 1 : 0);
      std::vector<int32_t> row(max_pages, 0);
      std::copy(sequence.pages.begin(), sequence.pages.end(), row.begin());
      page_table.insert(page_table.end(), row.begin(), row.end());
    }

    models::Batch batch() const {
      return {.tokens = tokens,
              .positions = positions,
              .slots = slots,
              .q_start = q_start,
              .kv_len = kv_len,
              .page_table = page_table,
              .max_pages = static_cast<int64_t>(max_pages),
              .logits_rows = logits_rows,
              .state_slots = state_slots,
              .prompt_tokens = prompt_tokens,
              .rope_sets = rope_sets};
    }
  };

  // shift 1: of each position the token after it.
  static Rows RowsOf(RunnerSequence& sequence, int64_t first, int64_t count, int64_t shift) {
    const auto begin = sequence.tokens.begin() + first + shift;
    return {&sequence, first, {begin, begin + count}};
  }

  void Draft(const std::vector<Rows>& rows, const uint16_t* hidden) {
    const Arrays arrays(rows, model_.info(), pool_.page_size());
    Keep(model_.ForwardDraft(arrays.batch(), hidden, pool_), rows, &RunnerSequence::draft_logits);
  }

  void Keep(const float* logits, const std::vector<Rows>& rows,
            std::vector<std::vector<float>> RunnerSequence::* kept) const {
    const int64_t v = model_.info().vocab_size;
    Device& device = *model_.ops().device;
    for (const Rows& r : rows) {
      for (size_t i = 0; i < r.tokens.size(); ++i, logits += v) {
        std::vector<float>& row = (r.sequence->*kept).emplace_back(v);
        device.Download(row.data(), logits, v * sizeof(float));
      }
    }
    NIBBLE_CHECK(device.failure().empty(), "{}", device.failure());
  }

  models::Model& model_;
  models::KvPool& pool_;
};

}  // namespace nibble::testing
