// Sampler: turns rows of logits into tokens and log-probabilities with the backend's sampling op.
//
// A prompt token is scored with the same op: a greedy row in which a bias makes that token the
// largest; log-probability and rank are of the raw logits and know nothing of it. Buffers are
// allocated by Create for the largest step. Thread-safety: the engine thread's.
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

namespace nibble::engine {

class Sampler {
 public:
  struct Options {
    int64_t vocab = 0;            // V: columns of the logits
    int64_t tokenizer_vocab = 0;  // ids from here on are padding and never drawn
    int64_t max_rows = 0;         // R
    int64_t max_top_logprobs = 0;
    ThreadPool* pool = nullptr;  // null: one of its own, with one thread
  };
  static Result<std::unique_ptr<Sampler>> Create(const kernels::OpTable& ops,
                                                 const Options& options);
  static int64_t Bytes(const kernels::OpTable& ops, const Options& options);

  // logits (R, V), one row per LogitsRow.
  void Run(const float* logits, std::span<const LogitsRow> rows);

  // Results of the last Run. A sampled token, or the scored prompt token.
  int32_t token(size_t row) const { return sampled_[row].token; }
  TokenLogprob logprob(size_t row) const;

  // Ids that are never drawn.
  std::span<const int32_t> padding() const { return padding_; }

 private:
  Sampler(const kernels::OpTable& ops, const Options& options);
  kernels::SampleRow SamplingRow(const LogitsRow& row) const;
  kernels::SampleRow ScoringRow(const LogitsRow& row, kernels::TokenBias& force) const;

  const kernels::OpTable& ops_;
  const Options options_;
  std::unique_ptr<ThreadPool> own_pool_;
  Buffer workspace_;
  std::vector<int32_t> padding_;
  std::vector<kernels::SampleRow> rows_;
  std::vector<kernels::TokenBias> forced_;  // one per row
  std::vector<kernels::SampledToken> sampled_;
  std::vector<int32_t> top_tokens_;  // (R, max_top_logprobs)
  std::vector<float> top_logprobs_;
};

}  // namespace nibble::engine
