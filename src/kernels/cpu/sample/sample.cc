#include "kernels/cpu/sample/sample.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/parallel.h"
#include "kernels/logits_hash.h"
#include "kernels/sample_counts.h"

namespace nibble::kernels::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Ids per step of the passes over a row: sums of one block are FP32, sums of blocks double.
constexpr int64_t kBlock = 1024;

// Above this many candidates top-p finds its cut by a histogram instead of sorting them all.
constexpr int64_t kMaxSorted = 512;
constexpr int kBuckets = 2048;
constexpr float kBucketsPerNat = 64.0f;

constexpr int64_t RoundUpToLine(int64_t elements) { return (elements + 15) / 16 * 16; }

int64_t Blocks(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

size_t ThreadBytes(int64_t vocab) {
  return static_cast<size_t>(RoundUpToLine(vocab) * 4 * 4 + RoundUpToLine(Blocks(vocab)) * 8);
}

bool IsAllowed(const SampleRow& row, int64_t token) {
  return row.allowed_mask == nullptr || ((row.allowed_mask[token / 32] >> (token % 32)) & 1u) != 0;
}

bool ChangesLogits(const SampleRow& row) {
  const bool penalties = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                         row.frequency_penalty != 0.0f;
  return (penalties && (!row.counts.empty() || row.counts_drawn)) || !row.bias.empty() ||
         !row.banned.empty() || row.allowed_mask != nullptr;
}

// The worst token that stays: kept are larger logits, and equal ones up to this id.
struct Cut {
  float logit;
  int32_t token;
};
constexpr Cut kKeepAll = {kMinusInfinity, std::numeric_limits<int32_t>::max()};

// One row at a time; owns nothing, the scratch is one thread's.
class RowSampler {
 public:
  RowSampler(const VectorKernels& kernels, const SampleParams& params, std::byte* scratch)
      : kernels_(kernels), p_(params), vocab_(params.vocab) {
    const int64_t line = RoundUpToLine(vocab_);
    block_sums_ = reinterpret_cast<double*>(scratch);
    processed_ = reinterpret_cast<float*>(block_sums_ + RoundUpToLine(Blocks(vocab_)));
    weights_ = processed_ + line;
    ids_ = reinterpret_cast<int32_t*>(weights_ + line);
    order_ = ids_ + line;
  }

  void Run(int64_t index) {
    const SampleRow& row = p_.rows[index];
    raw_ = p_.logits + index * p_.logits_stride;
    int64_t raw_best;
    kernels_.best_logit(raw_, vocab_, &raw_largest_, &raw_best);
    SampledToken& out = p_.out[index];
    out = {.broken = raw_best < 0};
    if (row.wants_hash) out.logits_hash = FinishLogitsHash(kernels_.sum_hash_terms(raw_, vocab_));
    if (!out.broken) out.token = Choose(row, raw_best);
    if (!out.broken && row.top_logprobs >= 0) {
      log_sum_ = std::log(SumWeights(raw_, raw_largest_, 1.0f));
      out.logprob = Logprob(raw_[out.token]);
      out.rank = out.token == raw_best ? 1 : Rank(out.token);
    }
    if (row.drawn_slot >= 0) p_.drawn[row.drawn_slot] = out.token;
    if (p_.top_tokens != nullptr) WriteTop(out.broken ? 0 : row.top_logprobs, index);
  }

 private:
  static auto BetterIn(const float* logits) {
    return [logits](int32_t a, int32_t b) {
      return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    };
  }

  static float Clean(float logit) {
    return std::isnan(logit) ? kMinusInfinity : std::min(logit, FLT_MAX);
  }

  float Logprob(float logit) const {
    if (logit == kMinusInfinity) return kMinusInfinity;
    return static_cast<float>(double{logit} - raw_largest_ - log_sum_);
  }

  int32_t Rank(int32_t token) const {
    const float logit = raw_[token];
    return static_cast<int32_t>(1 + kernels_.count_above(raw_, vocab_, logit) +
                                kernels_.count_equal(raw_, token, logit));
  }

  void WriteTop(int64_t wanted, int64_t index) {
    int32_t* tokens = p_.top_tokens + index * p_.max_top_logprobs;
    float* logprobs = p_.top_logprobs + index * p_.max_top_logprobs;
    std::fill_n(tokens, p_.max_top_logprobs, -1);
    std::fill_n(logprobs, p_.max_top_logprobs, kMinusInfinity);
    wanted = std::min(wanted, p_.max_top_logprobs);
    if (wanted <= 0) return;
    const int64_t found = CollectBest(raw_, wanted);
    std::sort(ids_, ids_ + found, BetterIn(raw_));
    for (int64_t i = 0; i < found; ++i) {
      tokens[i] = ids_[i];
      logprobs[i] = Logprob(raw_[ids_[i]]);
    }
  }

  // Sum of exp((logit - largest) * inverse_temperature), block by block into block_sums_.
  double SumWeights(const float* logits, float largest, float inverse_temperature) {
    double sum = 0;
    for (int64_t block = 0; block < Blocks(vocab_); ++block) {
      const int64_t begin = block * kBlock;
      block_sums_[block] = kernels_.softmax_sum(logits + begin, std::min(kBlock, vocab_ - begin),
                                                largest, inverse_temperature);
      sum += block_sums_[block];
    }
    return sum;
  }

  // The k best ids to ids_, in no order; returns how many there are (-inf never counts).
  int64_t CollectBest(const float* logits, int64_t k) {
    const auto better = BetterIn(logits);
    float threshold = kMinusInfinity;
    int64_t found = 0;
    for (int64_t begin = 0; begin < vocab_; begin += kBlock) {
      found += kernels_.collect_above(logits + begin, std::min(kBlock, vocab_ - begin), threshold,
                                      static_cast<int32_t>(begin), ids_ + found);
      if (found < 2 * k) continue;
      std::nth_element(ids_, ids_ + k - 1, ids_ + found, better);
      found = k;
      // Later ids lose ties, so only larger logits matter from here on.
      threshold = logits[ids_[k - 1]];
    }
    if (found > k) {
      std::nth_element(ids_, ids_ + k - 1, ids_ + found, better);
      found = k;
    }
    return found;
  }

  int32_t Choose(const SampleRow& row, int64_t raw_best) {
    const float* logits = raw_;
    float largest = raw_largest_;
    int64_t best = raw_best;
    if (ChangesLogits(row)) {
      Process(row);
      logits = processed_;
      kernels_.best_logit(logits, vocab_, &largest, &best);
    }
    if (best < 0) return Fallback(row, raw_best);
    if (row.temperature == 0.0f) return static_cast<int32_t>(best);
    return Draw(row, logits, largest, best);
  }

  // Bias, banned and disallowed tokens, penalties.
  void Process(const SampleRow& row) {
    std::copy_n(raw_, vocab_, processed_);
    for (const TokenBias& bias : row.bias)
      processed_[bias.token] = Clean(processed_[bias.token] + bias.bias);
    for (int32_t token : row.banned) processed_[token] = kMinusInfinity;
    if (row.allowed_mask != nullptr) ApplyMask(row.allowed_mask);
    ForEachCount(row, p_.drawn, [&](int32_t token, int32_t count) {
      float logit = processed_[token];
      logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
      if (count > 0)
        logit -= row.frequency_penalty * static_cast<float>(count) + row.presence_penalty;
      processed_[token] = Clean(logit);
    });
  }

  void ApplyMask(const uint32_t* mask) {
    for (int64_t begin = 0; begin < vocab_; begin += 32) {
      const uint32_t word = mask[begin / 32];
      if (word == 0xFFFFFFFFu) continue;
      const int64_t n = std::min<int64_t>(32, vocab_ - begin);
      for (int64_t i = 0; i < n; ++i)
        if (((word >> i) & 1u) == 0) processed_[begin + i] = kMinusInfinity;
    }
  }

  // Every token is ruled out: the best raw token that the mask allows, else the best of all.
  int32_t Fallback(const SampleRow& row, int64_t raw_best) const {
    int64_t best = -1;
    for (int64_t token = 0; row.allowed_mask != nullptr && token < vocab_; ++token)
      if (IsAllowed(row, token) && (best < 0 || raw_[token] > raw_[best])) best = token;
    return static_cast<int32_t>(best < 0 ? raw_best : best);
  }

  int32_t Draw(const SampleRow& row, const float* logits, float largest, int64_t best) {
    const float inverse = std::min(1.0f / row.temperature, FLT_MAX);
    const bool limits_k = row.top_k > 0 && row.top_k < vocab_;
    if (!limits_k && row.top_p >= 1.0f && row.min_p <= 0.0f)
      return DrawFromAll(row, logits, largest, inverse, best);

    int64_t count;
    double mass = 0;  // of what top-p takes its share
    if (limits_k) {
      count = CollectBest(logits, row.top_k);
      std::sort(ids_, ids_ + count);
    } else {
      count = CollectLikely(row, logits, largest, inverse, &mass);
    }
    for (int64_t i = 0; i < count; ++i) weights_[i] = logits[ids_[i]];
    kernels_.softmax_weights(weights_, count, largest, inverse, weights_);
    if (limits_k)
      for (int64_t i = 0; i < count; ++i) mass += weights_[i];

    Cut cut = kKeepAll;
    if (row.top_p < 1.0f) cut = TopPCut(logits, largest, inverse, count, row.top_p * mass);
    count = Keep(logits, cut, row.min_p, count);
    return count > 0 ? DrawFromKept(row.uniform, count) : static_cast<int32_t>(best);
  }

  // A superset, in order of id, of what top-p and min-p can keep. Tokens lighter than
  // (1 - top_p) mass / V weigh less than (1 - top_p) mass together, so top-p never reaches them.
  int64_t CollectLikely(const SampleRow& row, const float* logits, float largest, float inverse,
                        double* mass) {
    double lightest = row.min_p;
    if (row.top_p < 1.0f) {
      *mass = SumWeights(logits, largest, inverse);
      lightest = std::max(0.0, 1.0 - row.top_p) * *mass / static_cast<double>(vocab_);
    }
    // A little below, as logits and weights are rounded; weights below e^-87 count as 0 anyway.
    const double nats = std::log(std::max(lightest, 1e-38)) - 1e-3;
    const double threshold = largest + nats / inverse - std::abs(double{largest}) * 1e-6;
    const float above = threshold < -FLT_MAX ? kMinusInfinity : static_cast<float>(threshold);
    int64_t count = 0;
    for (int64_t begin = 0; begin < vocab_; begin += kBlock)
      count += kernels_.collect_above(logits + begin, std::min(kBlock, vocab_ - begin), above,
                                      static_cast<int32_t>(begin), ids_ + count);
    return count;
  }

  // The worst candidate that top-p keeps: the first at which the mass of the better ones and its
  // own reaches `wanted`. Many candidates go through a histogram over their distance from the best,
  // so that only those of one bucket are sorted.
  Cut TopPCut(const float* logits, float largest, float inverse, int64_t count, double wanted) {
    double better_mass = 0;
    int64_t in_question = count;
    if (count <= kMaxSorted) {
      std::iota(order_, order_ + count, 0);
    } else {
      const auto bucket_of = [&](int64_t i) {
        const float nats = (largest - logits[ids_[i]]) * inverse;
        return static_cast<int>(std::min(nats * kBucketsPerNat, float{kBuckets - 1}));
      };
      std::array<double, kBuckets> sums{};
      for (int64_t i = 0; i < count; ++i) {
        order_[i] = bucket_of(i);
        sums[order_[i]] += weights_[i];
      }
      int bucket = 0;
      while (bucket < kBuckets - 1 && better_mass + sums[bucket] < wanted)
        better_mass += sums[bucket++];
      in_question = 0;
      for (int64_t i = 0; i < count; ++i)
        if (order_[i] == bucket) order_[in_question++] = static_cast<int32_t>(i);
    }
    const auto better = BetterIn(logits);
    std::sort(order_, order_ + in_question,
              [&](int32_t a, int32_t b) { return better(ids_[a], ids_[b]); });
    for (int64_t i = 0; i < in_question; ++i) {
      better_mass += weights_[order_[i]];
      const int32_t token = ids_[order_[i]];
      if (better_mass >= wanted || i == in_question - 1) return {logits[token], token};
    }
    return kKeepAll;
  }

  // Drops the candidates beyond the cut or below min_p; returns how many stay.
  int64_t Keep(const float* logits, Cut cut, float min_p, int64_t count) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float logit = logits[ids_[i]];
      const bool within = logit > cut.logit || (logit == cut.logit && ids_[i] <= cut.token);
      if (!within || weights_[i] < min_p) continue;
      ids_[kept] = ids_[i];
      weights_[kept++] = weights_[i];
    }
    return kept;
  }

  int32_t DrawFromKept(double uniform, int64_t count) const {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += weights_[i];
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += weights_[i];
      if (sum > uniform * total) return ids_[i];
    }
    return ids_[count - 1];
  }

  // No limits: the block that holds the target by its sum, then the token within the block.
  int32_t DrawFromAll(const SampleRow& row, const float* logits, float largest, float inverse,
                      int64_t best) {
    const double target = row.uniform * SumWeights(logits, largest, inverse);
    double sum = 0;
    int64_t block = 0;
    while (block < Blocks(vocab_) && sum + block_sums_[block] <= target)
      sum += block_sums_[block++];
    if (block == Blocks(vocab_)) return static_cast<int32_t>(best);
    const int64_t begin = block * kBlock;
    const int64_t n = std::min(kBlock, vocab_ - begin);
    kernels_.softmax_weights(logits + begin, n, largest, inverse, weights_);
    int64_t last = 0;  // the lanes of the block's sum may round above the sum in order
    for (int64_t i = 0; i < n; ++i) {
      if (weights_[i] > 0) last = i;
      sum += weights_[i];
      if (sum > target) break;
    }
    return static_cast<int32_t>(begin + last);
  }

  const VectorKernels& kernels_;
  const SampleParams& p_;
  const int64_t vocab_;
  double* block_sums_;  // (⌈V / kBlock⌉)
  float* processed_;    // (V)
  float* weights_;      // (V) of the candidates
  int32_t* ids_;        // (V) of the candidates
  int32_t* order_;      // (V) of candidates being sorted
  const float* raw_ = nullptr;
  float raw_largest_ = 0;
  double log_sum_ = 0;
};

}  // namespace

size_t SampleWorkspace(int threads, int64_t /*max_rows*/, int64_t vocab) {
  return static_cast<size_t>(threads) * ThreadBytes(vocab);
}

void Sample(const VectorKernels& kernels, const OpContext& context, const SampleParams& params) {
  const size_t thread_bytes = ThreadBytes(params.vocab);
  ForEachItem(context, static_cast<int64_t>(params.rows.size()), [&](int64_t row, int thread) {
    std::byte* scratch = context.workspace + static_cast<size_t>(thread) * thread_bytes;
    RowSampler(kernels, params, scratch).Run(row);
  });
}

}  // namespace nibble::kernels::cpu
