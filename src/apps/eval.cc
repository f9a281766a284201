// nibble eval: perplexity of a model over a text and, with a reference, how far its predictions
// are from those of the other.
#include "eval/compare.h"

#include <fmt/format.h>

#include "apps/evaluation.h"
#include "apps/sample_text.h"
#include "base/file.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;

constexpr size_t kMaxTextBytes = size_t{64} << 20;

json::object ModelJson(const std::string& name, const models::ModelInfo& info,
                       const eval::Reading& reading) {
  return {{"model", name},
          {"weights", info.weight_summary},
          {"weight_bytes", info.weight_bytes},
          {"bytes_per_token", info.bytes_per_token},
          {"perplexity", reading.perplexity}};
}

std::string ModelLine(std::string_view name, const models::ModelInfo& info,
                      const eval::Reading& reading) {
  return fmt::format("{:<10} {:>10.4f} {:>14.1f} {:>14.1f}   {}\n", name, reading.perplexity,
                     static_cast<double>(info.weight_bytes) / 1e6,
                     static_cast<double>(info.bytes_per_token) / 1e6, info.weight_summary);
}

std::string Header() {
  return fmt::format("{:<10} {:>10} {:>14} {:>14}   {}\n", "", "perplexity", "weights MB",
                     "MB per token", "stored as");
}

Status EvalAlone(const EvalOptions& options, const LoadedModel& model, const std::string& text) {
  Progress progress("reading", TokensIn(*model.engine, text), Progress::Unit::kItems);
  NIBBLE_ASSIGN(const eval::Reading reading,
                eval::Read(*model.engine, text, {.window = options.window, .progress = &progress}));
  const models::ModelInfo& info = model.engine->model_info();
  if (options.json) {
    json::object out = ModelJson(options.model.model, info, reading);
    out["tokens"] = reading.scored_tokens;
    fmt::print("{}\n", json::serialize(out));
    return {};
  }
  fmt::print("over {} tokens\n{}{}", reading.scored_tokens, Header(),
             ModelLine("model", info, reading));
  return {};
}

Status EvalBeside(const EvalOptions& options, const LoadedModel& model, const std::string& text) {
  ModelOptions of_reference = options.model;
  of_reference.model = options.reference;
  of_reference.quantization.clear();
  // As exact as can be: what the model's cache and activations cost shows, too.
  of_reference.kv_cache_dtype = "bf16";
  of_reference.activations = "16";
  NIBBLE_ASSIGN(const LoadedModel reference, LoadForReading(of_reference, options.window));
  NIBBLE_ASSIGN(const eval::Comparison found,
                CompareModels(*model.engine, *reference.engine, text, options.window));
  const models::ModelInfo& info = model.engine->model_info();
  const models::ModelInfo& reference_info = reference.engine->model_info();
  if (!options.json) {
    fmt::print("{}", ComparisonTable(found, info, reference_info));
    return {};
  }
  json::object out = ModelJson(options.model.model, info, found.model);
  out["tokens"] = found.model.scored_tokens;
  out["reference"] = ModelJson(options.reference, reference_info, found.reference);
  out["mean_kl"] = found.mean_kl;
  out["largest_kl"] = found.largest_kl;
  out["same_top"] = found.same_top;
  fmt::print("{}\n", json::serialize(out));
  return {};
}

Status RunEval(const EvalOptions& options) {
  NIBBLE_ASSIGN(const std::string text, EvalText(options.text));
  NIBBLE_ASSIGN(const LoadedModel model, LoadForReading(options.model, options.window));
  return options.reference.empty() ? EvalAlone(options, model, text)
                                   : EvalBeside(options, model, text);
}

}  // namespace

Result<std::string> EvalText(const std::string& file) {
  if (file.empty()) return std::string(kSampleText);
  return ReadFile(file, kMaxTextBytes);
}

int64_t TokensIn(const engine::Engine& model, const std::string& text) {
  const auto tokens = model.tokenizer().Encode(text);
  return tokens ? static_cast<int64_t>(tokens->size()) : 0;
}

Result<LoadedModel> LoadForReading(ModelOptions options, int64_t window,
                                   models::LinearObserver* observer) {
  options.max_num_seqs = 1;
  options.max_model_len = window;
  options.prefix_caching = false;
  return LoadEngine(options, {}, observer);
}

Result<eval::Comparison> CompareModels(engine::Engine& model, engine::Engine& reference,
                                       const std::string& text, int64_t window) {
  Progress progress("comparing", TokensIn(model, text), Progress::Unit::kItems);
  return eval::Compare(model, reference, text, {.window = window, .progress = &progress});
}

std::string ComparisonTable(const eval::Comparison& found, const models::ModelInfo& model,
                            const models::ModelInfo& reference) {
  std::string out = fmt::format("over {} tokens\n", found.model.scored_tokens) + Header();
  out += ModelLine("reference", reference, found.reference);
  out += ModelLine("model", model, found.model);
  const double saved = static_cast<double>(reference.bytes_per_token - model.bytes_per_token);
  out += fmt::format(
      "perplexity {:+.2f} %, KL divergence {:.5f} nats per token (largest {:.3f}), same likeliest "
      "token {:.2f} %, {:.1f} MB less per token ({:.1f} %)\n",
      100 * (found.model.perplexity / found.reference.perplexity - 1), found.mean_kl,
      found.largest_kl, 100 * found.same_top, saved / 1e6,
      100 * saved / static_cast<double>(reference.bytes_per_token));
  return out;
}

int Eval(const EvalOptions& options) {
  const Status status = RunEval(options);
  return status ? 0 : Report(status.error());
}

}  // namespace nibble::apps
