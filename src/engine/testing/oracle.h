// The naive oracle: one request alone, token by token, without scheduler, cache or streaming. Its
// text is the decoding of all tokens at once, its stop strings are found by searching that text.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/generate.h"
#include "engine/random.h"
#include "kernels/logits_hash.h"
#include "kernels/ops.h"

namespace nibble::engine {

struct OracleModel {
  std::function<std::vector<float>(std::span<const int32_t>)> logits;
  int64_t max_model_len = 0;
  const text::Tokenizer* tokenizer = nullptr;  // may be null
  std::vector<int32_t> eos;
};

class Oracle {
 public:
  explicit Oracle(OracleModel model) : model_(std::move(model)) {}

  // request.sampling.seed must be set.
  Generation Run(const Request& request) const {
    Generation result;
    const SamplingParams& p = request.sampling;
    if (p.prompt_logprobs >= 0) {
      result.prompt.logprobs.resize(1);
      for (size_t i = 1; i < request.tokens.size(); ++i)
        result.prompt.logprobs.push_back(Score(model_.logits(std::span(request.tokens).first(i)),
                                               request.tokens[i], p.prompt_logprobs));
    }
    for (int32_t choice = 0; choice < p.n; ++choice)
      result.choices.push_back(RunChoice(request, choice));
    return result;
  }

 private:
  GeneratedChoice RunChoice(const Request& request, int32_t choice) const {
    const SamplingParams& p = request.sampling;
    std::vector<int32_t> history = request.tokens;
    GeneratedChoice result;
    result.done = {.choice = choice, .reason = FinishReason::kLength};
    const auto limit =
        std::min<int64_t>(p.max_tokens < 0 ? model_.max_model_len : p.max_tokens,
                          model_.max_model_len - static_cast<int64_t>(request.tokens.size()));
    while (static_cast<int64_t>(result.tokens.size()) < limit) {
      const std::vector<float> logits = model_.logits(history);
      const int32_t token = Draw(request, choice, history, logits);
      history.push_back(token);
      result.tokens.push_back(token);
      if (p.logprobs >= 0) result.logprobs.push_back(Score(logits, token, p.logprobs));
      if (p.hashes_logits) result.done.logits_hash = kernels::HashLogits(logits);
      if (Ends(request, token, result)) break;
    }
    result.done.completion_tokens = static_cast<int64_t>(result.tokens.size());
    return result;
  }

  int32_t Draw(const Request& request, int32_t choice, std::span<const int32_t> history,
               const std::vector<float>& logits) const {
    const SamplingParams& p = request.sampling;
    const size_t prompt = request.tokens.size();
    std::map<int32_t, kernels::TokenCount> counts;
    for (size_t i = 0; i < history.size(); ++i) {
      kernels::TokenCount& count = counts[history[i]];
      count.token = history[i];
      i < prompt ? void(count.in_prompt = true) : void(++count.count);
    }
    std::vector<kernels::TokenCount> list;
    if (p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0)
      for (const auto& [token, count] : counts) list.push_back(count);
    std::vector<kernels::TokenBias> bias;
    for (const auto& [token, value] : p.logit_bias) bias.push_back({token, value});
    std::vector<int32_t> banned;
    if (model_.tokenizer != nullptr)
      for (auto id = static_cast<size_t>(model_.tokenizer->vocab_size()); id < logits.size(); ++id)
        banned.push_back(static_cast<int32_t>(id));
    if (static_cast<int64_t>(history.size() - prompt) < p.min_tokens) {
      if (!p.ignore_eos) banned.insert(banned.end(), model_.eos.begin(), model_.eos.end());
      banned.insert(banned.end(), p.stop_token_ids.begin(), p.stop_token_ids.end());
    }
    const kernels::SampleRow row{
        .temperature = p.temperature,
        .top_k = std::max(p.top_k, 0),
        .top_p = p.top_p,
        .min_p = p.min_p,
        .repetition_penalty = p.repetition_penalty,
        .presence_penalty = p.presence_penalty,
        .frequency_penalty = p.frequency_penalty,
        .counts = list,
        .bias = bias,
        .banned = banned,
        .uniform = UniformDraw(*p.seed, choice, static_cast<int64_t>(history.size()))};
    kernels::SampledToken sampled;
    kernels::RefOps().sample({}, {.logits = logits.data(),
                                  .logits_stride = static_cast<int64_t>(logits.size()),
                                  .vocab = static_cast<int64_t>(logits.size()),
                                  .rows = {&row, 1},
                                  .out = &sampled});
    return sampled.token;
  }

  // log softmax in double, rank and the best by sorting.
  static TokenLogprob Score(const std::vector<float>& logits, int32_t token, int32_t top) {
    const double largest = *std::ranges::max_element(logits);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    const auto logprob = [&](int32_t id) {
      return static_cast<float>(logits[id] - largest - std::log(sum));
    };
    std::vector<int32_t> order(logits.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::ranges::stable_sort(order, std::greater{}, [&](int32_t id) { return logits[id]; });
    TokenLogprob result{.token = token, .logprob = logprob(token)};
    result.rank = static_cast<int32_t>(std::ranges::find(order, token) - order.begin()) + 1;
    for (int32_t i = 0; i < top; ++i) result.top.emplace_back(order[i], logprob(order[i]));
    return result;
  }

  // Sets text and done, which are final when the answer ends here.
  bool Ends(const Request& request, int32_t token, GeneratedChoice& result) const {
    const SamplingParams& p = request.sampling;
    const auto has = [&](const std::vector<int32_t>& ids) {
      return std::ranges::find(ids, token) != ids.end();
    };
    const bool eos = !p.ignore_eos && has(model_.eos);
    const bool stop_token = !eos && has(p.stop_token_ids);
    if (stop_token) result.done.stop_token = token;
    if (eos || stop_token) result.done.reason = FinishReason::kStop;
    if (model_.tokenizer == nullptr) return eos || stop_token;

    std::vector<int32_t> shown = result.tokens;
    if ((eos || stop_token) && !p.include_stop_string) shown.pop_back();
    result.text = model_.tokenizer->Decode(shown, p.skip_special_tokens);
    if (static_cast<int64_t>(result.tokens.size()) <= p.min_tokens) return eos || stop_token;
    // What the first min_tokens tokens complete is plain text.
    const std::string early = model_.tokenizer->Decode(
        std::span(result.tokens).first(static_cast<size_t>(p.min_tokens)), p.skip_special_tokens);
    const auto floor =
        static_cast<size_t>(std::ranges::mismatch(early, result.text).in1 - early.begin());
    size_t first_end = std::string::npos;
    for (const std::string& stop : p.stop) {
      const size_t from = floor + 1 > stop.size() ? floor + 1 - stop.size() : 0;
      const size_t at = result.text.find(stop, from);
      if (at == std::string::npos) continue;
      const size_t end = at + stop.size();
      if (end < first_end || (end == first_end && stop.size() > result.done.stop_string.size())) {
        first_end = end;
        result.done.stop_string = stop;
      }
    }
    if (first_end == std::string::npos) return eos || stop_token;
    result.text.resize(p.include_stop_string ? first_end
                                             : first_end - result.done.stop_string.size());
    result.done.reason = FinishReason::kStop;
    return true;
  }

  const OracleModel model_;
};

}  // namespace nibble::engine
