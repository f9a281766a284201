#include "eval/compare.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "engine/generate.h"

namespace nibble::eval {
namespace {

using Logits = std::span<const float>;
using OnLogits = std::function<void(int64_t position, Logits logits)>;

// log Σ exp(logits), in FP64.
double LogSumExp(Logits logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

// Σ p (log p - log q).
double Divergence(Logits p, Logits q) {
  const double p_sum = LogSumExp(p), q_sum = LogSumExp(q);
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_sum;
    const double log_q = q[i] - q_sum;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return std::max(sum, 0.0);
}

size_t Likeliest(Logits logits) {
  return static_cast<size_t>(std::ranges::max_element(logits) - logits.begin());
}

// One window through an engine.
Status RunWindow(engine::Engine& model, std::span<const int32_t> tokens,
                 const OnLogits& on_logits) {
  engine::Request request{.id = "eval", .tokens = {tokens.begin(), tokens.end()}};
  request.sampling.max_tokens = 0;
  request.sampling.prompt_logprobs = 0;
  request.on_prompt_logits = on_logits;
  return engine::Generate(model, std::move(request)).map([](const engine::Generation&) {});
}

struct Windows {
  std::vector<int32_t> tokens;
  int64_t size = 0;

  static Result<Windows> Cut(const engine::Engine& model, std::string_view text, int64_t window) {
    Windows windows;
    NIBBLE_ASSIGN(windows.tokens, model.tokenizer().Encode(text));
    if (windows.tokens.size() < 2) {
      return Fail(Code::kInvalidArgument, "eval needs a text of at least two tokens, this has {}",
                  windows.tokens.size());
    }
    windows.size = std::max<int64_t>(2, std::min(window, model.max_model_len()));
    return windows;
  }

  // fn(window) for each; a last one of a single token predicts nothing and is left out.
  Status ForEach(const ReadOptions& options,
                 const std::function<Status(std::span<const int32_t>)>& fn) const {
    const std::span<const int32_t> all(tokens);
    for (size_t begin = 0; begin + 1 < all.size(); begin += static_cast<size_t>(size)) {
      const auto window =
          all.subspan(begin, std::min(all.size() - begin, static_cast<size_t>(size)));
      NIBBLE_TRY(fn(window));
      if (options.progress != nullptr)
        options.progress->Advance(static_cast<int64_t>(window.size()));
    }
    return {};
  }
};

// Negative log-probabilities of what came next.
class Surprise {
 public:
  void Add(Logits logits, int32_t next) {
    sum_ += LogSumExp(logits) - static_cast<double>(logits[static_cast<size_t>(next)]);
    ++count_;
  }
  Reading reading() const {
    return {.scored_tokens = count_, .perplexity = std::exp(sum_ / static_cast<double>(count_))};
  }

 private:
  double sum_ = 0;
  int64_t count_ = 0;
};

}  // namespace

Result<Reading> Read(engine::Engine& model, std::string_view text, const ReadOptions& options) {
  NIBBLE_ASSIGN(const Windows windows, Windows::Cut(model, text, options.window));
  Surprise surprise;
  NIBBLE_TRY(windows.ForEach(options, [&](std::span<const int32_t> window) {
    return RunWindow(model, window, [&](int64_t position, Logits logits) {
      surprise.Add(logits, window[static_cast<size_t>(position) + 1]);
    });
  }));
  return surprise.reading();
}

Result<Comparison> Compare(engine::Engine& model, engine::Engine& reference, std::string_view text,
                           const ReadOptions& options) {
  const int64_t context = std::min(model.max_model_len(), reference.max_model_len());
  NIBBLE_ASSIGN(const Windows windows,
                Windows::Cut(model, text, std::min(options.window, context)));
  NIBBLE_ASSIGN(const std::vector<int32_t> theirs, reference.tokenizer().Encode(text));
  const auto vocab = static_cast<size_t>(model.model_info().vocab_size);
  const auto reference_vocab = static_cast<size_t>(reference.model_info().vocab_size);
  if (theirs != windows.tokens || vocab != reference_vocab) {
    return Fail(Code::kInvalidArgument,
                "the two models do not share a vocabulary ({} and {} entries; {} and {} tokens of "
                "text): only versions of one model can be compared",
                vocab, reference_vocab, windows.tokens.size(), theirs.size());
  }
  Surprise surprise, reference_surprise;
  Comparison result;
  double kl = 0;
  int64_t same = 0;
  std::vector<float> expected(static_cast<size_t>(windows.size) * vocab);  // (window, V)
  NIBBLE_TRY(windows.ForEach(options, [&](std::span<const int32_t> window) -> Status {
    NIBBLE_TRY(RunWindow(reference, window, [&](int64_t position, Logits logits) {
      std::ranges::copy(logits, expected.begin() + position * static_cast<int64_t>(vocab));
      reference_surprise.Add(logits, window[static_cast<size_t>(position) + 1]);
    }));
    return RunWindow(model, window, [&](int64_t position, Logits logits) {
      const auto at = static_cast<size_t>(position);
      const Logits wanted(expected.data() + at * vocab, vocab);
      surprise.Add(logits, window[at + 1]);
      const double divergence = Divergence(wanted, logits);
      kl += divergence;
      result.largest_kl = std::max(result.largest_kl, divergence);
      same += Likeliest(wanted) == Likeliest(logits) ? 1 : 0;
    });
  }));
  result.model = surprise.reading();
  result.reference = reference_surprise.reading();
  const auto tokens = static_cast<double>(result.model.scored_tokens);
  result.mean_kl = kl / tokens;
  result.same_top = static_cast<double>(same) / tokens;
  return result;
}

}  // namespace nibble::eval
