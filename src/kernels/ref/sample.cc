#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/logits_hash.h"
#include "kernels/ref/ref.h"
#include "kernels/sample_counts.h"

namespace nibble::kernels::ref {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool IsBroken(const std::vector<float>& raw) {
  return std::ranges::none_of(raw, [](float logit) { return logit > kMinusInfinity; }) ||
         std::ranges::any_of(raw, [](float logit) { return !(logit <= FLT_MAX); });
}

bool IsAllowed(const SampleRow& row, int64_t token) {
  return row.allowed_mask == nullptr || ((row.allowed_mask[token / 32] >> (token % 32)) & 1u) != 0;
}

// Bias, banned and disallowed tokens, penalties.
std::vector<float> Process(const SampleRow& row, const int32_t* drawn, std::vector<float> logits) {
  for (const TokenBias& bias : row.bias) logits[bias.token] += bias.bias;
  for (int32_t token : row.banned) logits[token] = kMinusInfinity;
  for (size_t token = 0; token < logits.size(); ++token)
    if (!IsAllowed(row, static_cast<int64_t>(token))) logits[token] = kMinusInfinity;
  ForEachCount(row, drawn, [&](int32_t token, int32_t count) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (count > 0)
      logit -= row.frequency_penalty * static_cast<float>(count) + row.presence_penalty;
  });
  for (float& logit : logits) logit = std::isnan(logit) ? kMinusInfinity : std::min(logit, FLT_MAX);
  return logits;
}

// Ids with a logit above -inf, the largest first, the smaller id first on ties.
std::vector<int32_t> Ranked(const std::vector<float>& logits) {
  std::vector<int32_t> order;
  for (size_t token = 0; token < logits.size(); ++token)
    if (logits[token] > kMinusInfinity) order.push_back(static_cast<int32_t>(token));
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return order;
}

// When every token is ruled out: the best raw token that the mask allows, else the best of all.
int32_t Fallback(const SampleRow& row, const std::vector<float>& raw) {
  const std::vector<int32_t> order = Ranked(raw);
  for (int32_t token : order)
    if (IsAllowed(row, token)) return token;
  for (size_t token = 0; token < raw.size(); ++token)
    if (row.allowed_mask != nullptr && IsAllowed(row, static_cast<int64_t>(token)))
      return static_cast<int32_t>(token);
  return order.front();
}

int32_t Draw(const SampleRow& row, const int32_t* drawn, const std::vector<float>& raw) {
  const std::vector<float> logits = Process(row, drawn, raw);
  std::vector<int32_t> kept = Ranked(logits);
  if (kept.empty()) return Fallback(row, raw);
  if (row.temperature == 0.0f) return kept.front();
  if (row.top_k > 0 && kept.size() > static_cast<size_t>(row.top_k)) kept.resize(row.top_k);

  const double largest = logits[kept.front()];
  const auto weight = [&](int32_t token) {
    return std::exp((logits[token] - largest) / row.temperature);
  };
  const auto total = [&] {
    return std::accumulate(kept.begin(), kept.end(), 0.0,
                           [&](double sum, int32_t token) { return sum + weight(token); });
  };
  if (row.top_p < 1.0f) {
    const double wanted = row.top_p * total();
    double sum = 0;
    size_t n = 0;
    while (n < kept.size() && (n == 0 || sum < wanted)) sum += weight(kept[n++]);
    kept.resize(n);
  }
  if (row.min_p > 0.0f)
    std::erase_if(kept, [&](int32_t token) { return weight(token) < row.min_p; });
  if (kept.empty()) return Ranked(logits).front();

  std::sort(kept.begin(), kept.end());
  const double target = row.uniform * total();
  double sum = 0;
  for (int32_t token : kept) {
    sum += weight(token);
    if (sum > target) return token;
  }
  return kept.back();
}

}  // namespace

void Sample(const OpContext&, const SampleParams& p) {
  for (size_t r = 0; r < p.rows.size(); ++r) {
    const SampleRow& row = p.rows[r];
    const float* stored = p.logits + static_cast<int64_t>(r) * p.logits_stride;
    const std::vector<float> raw(stored, stored + p.vocab);
    SampledToken& out = p.out[r];
    out = {.broken = IsBroken(raw), .logits_hash = HashLogits(raw)};
    if (!out.broken) out.token = Draw(row, p.drawn, raw);
    if (row.drawn_slot >= 0) p.drawn[row.drawn_slot] = out.token;
    if (p.top_tokens != nullptr) {
      std::fill_n(p.top_tokens + r * p.max_top_logprobs, p.max_top_logprobs, -1);
      std::fill_n(p.top_logprobs + r * p.max_top_logprobs, p.max_top_logprobs, kMinusInfinity);
    }
    if (out.broken) continue;

    const std::vector<int32_t> order = Ranked(raw);
    const double largest = raw[order.front()];
    double sum = 0;
    for (int32_t token : order) sum += std::exp(raw[token] - largest);
    const auto logprob = [&](int32_t token) {
      return static_cast<float>(raw[token] - largest - std::log(sum));
    };
    out.logprob = logprob(out.token);
    out.rank = 1;
    for (int64_t token = 0; token < p.vocab; ++token) {
      const bool before =
          raw[token] > raw[out.token] || (raw[token] == raw[out.token] && token < out.token);
      if (before) ++out.rank;
    }
    const int64_t wanted = std::min<int64_t>(row.top_logprobs, p.max_top_logprobs);
    const auto found = static_cast<int64_t>(order.size());
    for (int64_t i = 0; p.top_tokens != nullptr && i < std::min(wanted, found); ++i) {
      const int64_t at = static_cast<int64_t>(r) * p.max_top_logprobs + i;
      p.top_tokens[at] = order[i];
      p.top_logprobs[at] = logprob(order[i]);
    }
  }
}

}  // namespace nibble::kernels::ref
