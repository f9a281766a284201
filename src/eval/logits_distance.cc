#include "eval/logits_distance.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "engine/generate.h"

namespace nibble::eval {
namespace {

using Rows = std::vector<std::vector<float>>;

// By position.
Result<Rows> LogitsOf(engine::Engine& model, std::span<const int32_t> tokens) {
  Rows rows(tokens.size() - 1);
  engine::Request request{.id = "logits", .tokens = {tokens.begin(), tokens.end()}};
  request.sampling.seed = 0;  // even routing goes by it, too
  request.sampling.max_tokens = 0;
  request.sampling.prompt_logprobs = 0;
  request.on_prompt_logits = [&rows](int64_t position, std::span<const float> logits) {
    rows[static_cast<size_t>(position)].assign(logits.begin(), logits.end());
  };
  NIBBLE_TRY(engine::Generate(model, std::move(request)).map([](const engine::Generation&) {}));
  return rows;
}

double Distance(std::span<const float> row, std::span<const float> reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double wanted = reference[i];
    difference += (row[i] - wanted) * (row[i] - wanted);
    norm += wanted * wanted;
  }
  const double distance = std::sqrt(difference / norm);
  return std::isfinite(distance) ? distance : std::numeric_limits<double>::infinity();
}

}  // namespace

Result<LogitsDistance> MeasureLogits(engine::Engine& model, engine::Engine& reference,
                                     std::span<const int32_t> tokens) {
  if (tokens.size() < 2 || model.model_info().vocab_size != reference.model_info().vocab_size) {
    return Fail(Code::kInvalidArgument,
                "logits of {} tokens, vocabularies of {} and {}: expected two tokens or more and "
                "equal vocabularies",
                tokens.size(), model.model_info().vocab_size, reference.model_info().vocab_size);
  }
  NIBBLE_ASSIGN(const Rows rows, LogitsOf(model, tokens));
  NIBBLE_ASSIGN(const Rows wanted, LogitsOf(reference, tokens));
  LogitsDistance result{.rows = static_cast<int64_t>(rows.size())};
  for (size_t i = 0; i < rows.size(); ++i) {
    const double distance = Distance(rows[i], wanted[i]);
    result.mean += distance / static_cast<double>(rows.size());
    result.largest = std::max(result.largest, distance);
  }
  return result;
}

}  // namespace nibble::eval
