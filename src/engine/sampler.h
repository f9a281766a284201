// Sampler: turns rows of logits into tokens and log-probabilities with the backend's sampling op.
//
// A prompt token is scored with the same op: a greedy row in which a bias makes that token the
// largest; log-probability and rank are of the raw logits and know nothing of it. Results of a
// Launch are there when the device has passed it; drawn tokens also stay on the device, where the
// next step finds them before the host has seen them. Buffers are allocated for the largest step by
// Create and MakeResults. Thread-safety: the engine thread's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "device/buffer.h"
#include "engine/batch_builder.h"
#include "kernels/ops.h"
#include "models/model.h"

namespace nibble::engine {

// What one Launch gave. Its memory is written by the device.
class SampledRows {
 public:
  // A sampled token, or the scored prompt token.
  int32_t token(size_t row) const { return sampled_[row].token; }
  // The row was none of logits: nothing was sampled or scored (kernels::SampleRow).
  bool broken(size_t row) const { return sampled_[row].broken; }
  uint64_t logits_hash(size_t row) const { return sampled_[row].logits_hash; }
  TokenLogprob logprob(size_t row) const;

 private:
  friend class Sampler;
  struct Row {
    int32_t top_logprobs = 0;
    int32_t scored = -1;  // the prompt token; -1: sampled
  };

  Buffer memory_;
  std::span<kernels::SampledToken> sampled_;  // (R)
  std::span<int32_t> top_tokens_;             // (R, max_top_)
  std::span<float> top_logprobs_;
  int64_t max_top_ = 0;
  int64_t vocab_ = 0;
  std::vector<Row> rows_;
};

class Sampler final : public models::StepTail {
 public:
  struct Options {
    int64_t vocab = 0;            // V: columns of the logits
    int64_t tokenizer_vocab = 0;  // ids from here on are padding and never drawn
    int64_t max_rows = 0;         // R
    int64_t max_sequences = 0;    // slots for drawn tokens
    int64_t max_top_logprobs = 0;
    ThreadPool* pool = nullptr;  // null: one of its own, with one thread
  };
  static Result<std::unique_ptr<Sampler>> Create(const kernels::OpTable& ops,
                                                 const Options& options);
  static int64_t Bytes(const kernels::OpTable& ops, const Options& options);

  // Room for the results of a Launch.
  Result<SampledRows> MakeResults() const;

  // For the rows of a step, one per LogitsRow, before Launch: reads of the sequences what it needs.
  // Returns the sampler where the step may take it as its tail: where all rows take the best token.
  models::StepTail* Prepare(std::span<const LogitsRow> rows, SampledRows* results);
  // logits (R, V) of the rows that were prepared last. drawn_slots: (R) on the device, or null.
  void Launch(const float* logits, const int32_t* drawn_slots) override;
  const void* key() const override { return results_->sampled_.data(); }

  // (max_sequences) on the device: the last token drawn for the sequence of each slot.
  const int32_t* drawn() const { return drawn_.as<int32_t>(); }

  // Ids that are never drawn.
  std::span<const int32_t> padding() const { return padding_; }

 private:
  Sampler(const kernels::OpTable& ops, const Options& options);
  kernels::SampleRow SamplingRow(const LogitsRow& row) const;
  bool TakesTheBest(const kernels::SampleRow& row) const;
  kernels::SampleRow ScoringRow(const LogitsRow& row, kernels::TokenBias& force) const;

  const kernels::OpTable& ops_;
  const Options options_;
  std::unique_ptr<ThreadPool> own_pool_;
  Buffer workspace_;
  Buffer drawn_;
  std::vector<int32_t> padding_;
  std::vector<kernels::SampleRow> rows_;    // as the rest, of Prepare
  std::vector<kernels::TokenBias> forced_;  // one per row
  SampledRows* results_ = nullptr;
  bool wants_top_ = false;
};

}  // namespace nibble::engine
