#include "engine/sampler.h"

#include <limits>
#include <numeric>

#include "engine/random.h"

namespace nibble::engine {
namespace {

// Larger than any sum of a logit and the biases of a request.
constexpr float kForce = 1e30f;

int Threads(const Sampler::Options& options) {
  return options.pool == nullptr ? 1 : options.pool->threads();
}

}  // namespace

Result<std::unique_ptr<Sampler>> Sampler::Create(const kernels::OpTable& ops,
                                                 const Options& options) {
  if (ops.sample == nullptr)
    return Fail(Code::kUnsupported, "op sample: not in backend {}", ops.backend);
  std::unique_ptr<Sampler> sampler(new Sampler(ops, options));
  if (ops.sample_workspace != nullptr) {
    const size_t bytes = ops.sample_workspace(Threads(options), options.max_rows, options.vocab);
    NIBBLE_ASSIGN(sampler->workspace_, Buffer::Allocate(bytes, *ops.device));
  }
  NIBBLE_ASSIGN(sampler->drawn_,
                Buffer::Allocate(options.max_sequences * sizeof(int32_t), *ops.device));
  return sampler;
}

Result<SampledRows> Sampler::MakeResults() const {
  const auto rows = static_cast<size_t>(options_.max_rows);
  const auto tops = rows * static_cast<size_t>(options_.max_top_logprobs);
  SampledRows results;
  NIBBLE_ASSIGN(results.memory_,
                Buffer::AllocateShared(
                    rows * sizeof(kernels::SampledToken) + tops * (sizeof(int32_t) + sizeof(float)),
                    *ops_.device));
  std::byte* at = results.memory_.data();
  results.sampled_ = {reinterpret_cast<kernels::SampledToken*>(at), rows};
  at += results.sampled_.size_bytes();
  results.top_tokens_ = {reinterpret_cast<int32_t*>(at), tops};
  at += results.top_tokens_.size_bytes();
  results.top_logprobs_ = {reinterpret_cast<float*>(at), tops};
  results.max_top_ = options_.max_top_logprobs;
  results.vocab_ = options_.vocab;
  results.rows_.reserve(rows);
  return results;
}

int64_t Sampler::Bytes(const kernels::OpTable& ops, const Options& options) {
  const int64_t workspace = ops.sample_workspace == nullptr
                                ? 0
                                : static_cast<int64_t>(ops.sample_workspace(
                                      Threads(options), options.max_rows, options.vocab));
  return workspace + options.max_sequences * static_cast<int64_t>(sizeof(int32_t));
}

Sampler::Sampler(const kernels::OpTable& ops, const Options& options)
    : ops_(ops), options_(options) {
  if (options.pool == nullptr) own_pool_ = std::make_unique<ThreadPool>(1);
  if (options.tokenizer_vocab < options.vocab) {
    padding_.resize(options.vocab - options.tokenizer_vocab);
    std::iota(padding_.begin(), padding_.end(), static_cast<int32_t>(options.tokenizer_vocab));
  }
  rows_.reserve(options.max_rows);
  forced_.resize(options.max_rows);
}

models::StepTail* Sampler::Prepare(std::span<const LogitsRow> rows, SampledRows* results) {
  rows_.clear();
  results->rows_.clear();
  results_ = results;
  wants_top_ = false;
  bool best = true;
  for (size_t r = 0; r < rows.size(); ++r) {
    rows_.push_back(rows[r].sample ? SamplingRow(rows[r]) : ScoringRow(rows[r], forced_[r]));
    results->rows_.push_back({.top_logprobs = rows_.back().top_logprobs,
                              .scored = rows[r].sample ? -1 : forced_[r].token});
    wants_top_ = wants_top_ || rows_.back().top_logprobs > 0;
    best = best && TakesTheBest(rows_.back());
  }
  return best ? this : nullptr;
}

// What kernels::SampleParams.drawn_slots speaks of.
bool Sampler::TakesTheBest(const kernels::SampleRow& row) const {
  return row.temperature == 0.0f && row.top_logprobs <= 0 && row.bias.empty() &&
         row.counts.empty() && !row.counts_drawn && row.allowed_mask == nullptr &&
         row.banned.data() == padding_.data();
}

void Sampler::Launch(const float* logits, const int32_t* drawn_slots) {
  const kernels::OpContext context{
      .pool = options_.pool == nullptr ? own_pool_.get() : options_.pool,
      .stream = ops_.device->stream(),
      .workspace = workspace_.data(),
      .workspace_bytes = workspace_.size()};
  ops_.sample(context, {.logits = logits,
                        .logits_stride = options_.vocab,
                        .vocab = options_.vocab,
                        .rows = rows_,
                        .drawn = drawn_.as<int32_t>(),
                        .out = results_->sampled_.data(),
                        .top_tokens = wants_top_ ? results_->top_tokens_.data() : nullptr,
                        .top_logprobs = wants_top_ ? results_->top_logprobs_.data() : nullptr,
                        .max_top_logprobs = options_.max_top_logprobs,
                        .drawn_slots = drawn_slots});
}

kernels::SampleRow Sampler::SamplingRow(const LogitsRow& row) const {
  const Sequence& sequence = *row.sequence;
  const ActiveRequest& request = sequence.request;
  const SamplingParams& p = request.request.sampling;
  const bool early = sequence.generated() < p.min_tokens;
  return {.temperature = p.temperature,
          .top_k = p.top_k > 0 ? p.top_k : 0,
          .top_p = p.top_p,
          .min_p = p.min_p,
          .repetition_penalty = p.repetition_penalty,
          .presence_penalty = p.presence_penalty,
          .frequency_penalty = p.frequency_penalty,
          .counts = sequence.counts.counts(),
          .bias = request.bias,
          .banned = early ? std::span<const int32_t>(request.banned_early)
                          : std::span<const int32_t>(padding_),
          .uniform = UniformDraw(request.seed, sequence.choice, row.position + 1),
          .top_logprobs = p.logprobs,
          .wants_hash = p.hashes_logits,
          .drawn_slot = sequence.drawn_slot,
          .counts_drawn = sequence.unseen > 0 && UsesPenalties(p)};
}

kernels::SampleRow Sampler::ScoringRow(const LogitsRow& row, kernels::TokenBias& force) const {
  const Sequence& sequence = *row.sequence;
  force = {.token = sequence.tokens[row.position + 1], .bias = kForce};
  return {.temperature = 0.0f,
          .bias = {&force, 1},
          .top_logprobs = sequence.request.request.sampling.prompt_logprobs};
}

TokenLogprob SampledRows::logprob(size_t row) const {
  const kernels::SampledToken& sampled = sampled_[row];
  TokenLogprob result{.token = sampled.token, .logprob = sampled.logprob, .rank = sampled.rank};
  const int32_t scored = rows_[row].scored;
  if (scored >= 0 && scored != sampled.token) {
    // A raw logit of -inf cannot be forced: the token is impossible, and that is its score.
    result = {.token = scored,
              .logprob = -std::numeric_limits<float>::infinity(),
              .rank = static_cast<int32_t>(vocab_)};
  }
  const int64_t base = static_cast<int64_t>(row) * max_top_;
  for (int32_t i = 0; i < rows_[row].top_logprobs && top_tokens_[base + i] >= 0; ++i)
    result.top.emplace_back(top_tokens_[base + i], top_logprobs_[base + i]);
  return result;
}

}  // namespace nibble::engine
