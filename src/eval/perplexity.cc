#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/generate.h"

namespace nibble::eval {

Result<Perplexity> MeasurePerplexity(engine::Engine& engine, std::string_view text,
                                     int64_t window) {
  NIBBLE_ASSIGN(const std::vector<int32_t> tokens, engine.tokenizer().Encode(text));
  window = std::min(window, engine.max_model_len());
  double sum = 0;
  Perplexity result;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += window) {
    const size_t end = std::min(tokens.size(), begin + static_cast<size_t>(window));
    engine::Request request{.id = "perplexity",
                            .tokens = {tokens.begin() + begin, tokens.begin() + end}};
    request.sampling.max_tokens = 0;
    request.sampling.prompt_logprobs = 0;
    NIBBLE_ASSIGN(const engine::Generation scored, engine::Generate(engine, std::move(request)));
    for (const std::optional<engine::TokenLogprob>& token : scored.prompt.logprobs) {
      if (!token) continue;
      sum -= token->logprob;
      ++result.scored_tokens;
    }
  }
  if (result.scored_tokens == 0) {
    return Fail(Code::kInvalidArgument,
                "perplexity needs a text of at least two tokens, this one has {}", tokens.size());
  }
  result.value = std::exp(sum / static_cast<double>(result.scored_tokens));
  return result;
}

}  // namespace nibble::eval
