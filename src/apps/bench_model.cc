// nibble bench model: prefill and decode rates of a real or dummy model through the engine, with
// bytes and shares.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_check.h"
#include "apps/bench_mixed.h"
#include "apps/bench_profile.h"
#include "apps/bench_round.h"
#include "apps/load.h"
#include "apps/signals.h"
#include "apps/step_bytes.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;

// The last logits of these are compared between batches, which need no long prompts.
constexpr int64_t kHashedPrompt = 128;

struct Figures {
  BenchShape shape;
  double prefill_rate = 0;    // tokens per second, all sequences
  double decode_rate = 0;     // the same
  StepBytes read;             // of a decode step
  double bandwidth = 0;       // read.bytes per second
  double predicted_gb10 = 0;  // tokens per second, all sequences
  double predicted_h100 = 0;
  std::vector<std::string> logits_hashes;  // of prompts of at most kHashedPrompt tokens
  bool counts = true;  // with made-up weights: experts were hit as random choices hit them
};

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Kernels are loaded, and the steps to come recorded.
Status WarmUp(engine::Engine& engine, const BenchSampling& sampling, const BenchShape& shape) {
  constexpr int64_t kSteps = 12;
  BenchShape one = shape;
  one.batch = 1;
  NIBBLE_TRY(RunPrompts(engine, sampling, one, 1, 0));
  // Too few steps to measure may be enough to warm up.
  (void)RunDecode(engine, sampling, shape, kSteps, 0);
  return {};
}

Result<Figures> Measure(engine::Engine& engine, kernels::OpProbe& probe,
                        const BenchModelOptions& options, const BenchShape& shape) {
  if (shape.length() + options.decode > engine.max_model_len()) {
    return Fail(Code::kInvalidArgument,
                "--context {}, --prompt {} and --decode {} exceed the context of {}", shape.context,
                shape.prompt, options.decode, engine.max_model_len());
  }
  const BenchSampling sampling = {.temperature = options.temperature, .top_p = options.top_p};
  const BenchShape hashed = {.prompt = std::min(shape.prompt, kHashedPrompt), .batch = shape.batch};
  Figures figures{.shape = shape};
  NIBBLE_ASSIGN(PromptRound first, RunPrompts(engine, sampling, hashed, options.decode, 1));
  figures.logits_hashes = std::move(first.logits_hashes);
  NIBBLE_TRY(WarmUp(engine, sampling, shape));
  std::vector<double> prefill, decode;
  for (int i = 0; i < options.repeat; ++i) {
    const auto seed = static_cast<uint32_t>(i + 2);
    NIBBLE_ASSIGN(const PromptRound prompts, RunPrompts(engine, sampling, shape, 1, seed));
    NIBBLE_ASSIGN(const DecodeRound steps,
                  RunDecode(engine, sampling, shape, options.decode, seed));
    prefill.push_back(static_cast<double>(shape.prompt * shape.batch) / prompts.seconds);
    decode.push_back(shape.batch / steps.step_seconds);
  }
  figures.prefill_rate = Median(prefill);
  figures.decode_rate = Median(decode);
  const models::ModelInfo& info = engine.model_info();
  NIBBLE_ASSIGN(const double experts_hit, CountExperts(engine, probe, shape.batch));
  figures.read = CountStepBytes(info, shape.batch, experts_hit);
  figures.counts = options.model.load_format != "dummy" || figures.read.hits_as_random();
  figures.bandwidth = figures.decode_rate / shape.batch * figures.read.bytes;
  figures.predicted_gb10 = shape.batch / PredictStepSeconds(kGb10, info, figures.read.bytes);
  figures.predicted_h100 = shape.batch / PredictStepSeconds(kH100, info, figures.read.bytes);
  return figures;
}

// What is wrong with the last logits of shapes that were measured one after the other, if anything:
// sequence i's follow from its prompt alone, and prompts differ.
std::optional<std::string> LogitsProblem(std::span<const Figures> measured) {
  for (const Figures& one : measured) {
    const auto& hashes = one.logits_hashes;
    if (hashes.size() > 1 && std::ranges::count(hashes, hashes[0]) == std::ssize(hashes))
      return fmt::format("all {} sequences end with the same logits, {}: are they numbers?",
                         hashes.size(), hashes[0]);
    const Figures& first = measured.front();
    if (std::min(one.shape.prompt, kHashedPrompt) != std::min(first.shape.prompt, kHashedPrompt))
      continue;
    for (size_t i = 0; i < std::min(hashes.size(), first.logits_hashes.size()); ++i)
      if (hashes[i] != first.logits_hashes[i])
        return fmt::format(
            "last logits of sequence {} are {} in a batch of {}, but {} in one of {}", i, hashes[i],
            one.shape.batch, first.logits_hashes[i], first.shape.batch);
  }
  return std::nullopt;
}

json::object ToJson(const Figures& figures, const BenchModelOptions& options,
                    const LoadedModel& loaded) {
  return {
      {"model", options.model.model},
      {"device", loaded.device},
      {"prompt", figures.shape.prompt},
      {"decode", options.decode},
      {"batch", figures.shape.batch},
      {"context", figures.shape.context},
      {"threads", loaded.pool->threads()},
      {"activations", loaded.activations},
      {"prefill_tokens_per_second", figures.prefill_rate},
      {"decode_tokens_per_second", figures.decode_rate},
      {"milliseconds_per_step", 1e3 * figures.shape.batch / figures.decode_rate},
      {"bytes_per_token", loaded.engine->model_info().bytes_per_token},
      {"bytes_per_step", figures.read.bytes},
      {"experts_hit", figures.read.experts_hit},
      {"experts_hit_by_random_choices", figures.read.experts_likely},
      {"counts", figures.counts},
      {"predicted_unmeasured_tokens_per_second",
       json::object{{kGb10.name, figures.predicted_gb10}, {kH100.name, figures.predicted_h100}}},
      {"decode_bytes_per_second", figures.bandwidth},
      {"read_bytes_per_second", loaded.read_bandwidth},
      {"share_of_read", figures.bandwidth / loaded.read_bandwidth},
      {"last_logits", json::value_from(figures.logits_hashes)}};
}

void Print(const Figures& figures, const BenchModelOptions& options, double ceiling) {
  const BenchShape& shape = figures.shape;
  const std::string context =
      shape.context > 0 ? fmt::format(" behind {} in the cache", shape.context) : "";
  fmt::print("prefill  {:9.1f} tokens/s   ({} x {} tokens{}, median of {})\n", figures.prefill_rate,
             shape.batch, shape.prompt, context, options.repeat);
  fmt::print(
      "decode   {:9.1f} tokens/s   ({} x {} tokens): {:.3f} ms per step; {:.1f} GB/s, {:.0f} % of "
      "{:.1f} GB/s\n",
      figures.decode_rate, shape.batch, options.decode, 1e3 * shape.batch / figures.decode_rate,
      figures.bandwidth / 1e9, 100 * figures.bandwidth / ceiling, ceiling / 1e9);
  if (figures.read.experts_hit > 0)
    fmt::print(
        "experts  {:.1f} hit per layer and step ({:.1f} by random choices); {:.2f} GB of "
        "weights read per step\n",
        figures.read.experts_hit, figures.read.experts_likely, figures.read.bytes / 1e9);
  if (!figures.counts)
    fmt::print("these figures do not count: experts hit must be within {:.0f} % of {:.1f}\n",
               100 * StepBytes::kTolerance, figures.read.experts_likely);
  fmt::print("predicted from these bytes, not measured: {} {:.0f} tokens/s, {} {:.0f} tokens/s\n",
             kGb10.name, figures.predicted_gb10, kH100.name, figures.predicted_h100);
  fmt::print("last logits of sequence 0: {}\n", figures.logits_hashes.front());
  std::fflush(stdout);
}

json::object ToJson(const eval::LogitsDistance& distance) {
  return {{"rows", distance.rows},
          {"mean_distance", distance.mean},
          {"largest_distance", distance.largest},
          {"tolerance", distance.kTolerance},
          {"matches", distance.matches()}};
}

void Print(const eval::LogitsDistance& distance) {
  fmt::print(
      "check    the first layers' logits {} the reference's: at most {:.4f} away, {:.4f} on "
      "average ({} allowed)\n",
      distance.matches() ? "match" : "DO NOT MATCH", distance.largest, distance.mean,
      distance.kTolerance);
  std::fflush(stdout);
}

// Prints the shape's figures, or its profile, for people; returns them for programs. Figures are
// added to `measured`.
Result<json::object> RunShape(const LoadedModel& loaded, kernels::OpProbe& probe,
                              const BenchModelOptions& options, const BenchShape& shape,
                              std::vector<Figures>& measured) {
  if (options.profile) {
    const BenchSampling sampling = {.temperature = options.temperature, .top_p = options.top_p};
    NIBBLE_ASSIGN(const StepProfile profile,
                  ProfileDecode(*loaded.engine, probe, sampling, shape, options.decode));
    if (!options.json) Print(profile, loaded.read_bandwidth);
    return ToJson(profile, loaded.read_bandwidth);
  }
  NIBBLE_ASSIGN(Figures figures, Measure(*loaded.engine, probe, options, shape));
  if (!options.json) Print(figures, options, loaded.read_bandwidth);
  json::object row = ToJson(figures, options, loaded);
  measured.push_back(std::move(figures));
  return row;
}

Result<int> RunBench(const BenchModelOptions& options) {
  ModelOptions model = options.model;
  model.max_num_seqs =
      std::max(model.max_num_seqs, std::ranges::max(options.batches) + (options.mixed ? 1 : 0));
  // Made-up weights would make the router choose unevenly.
  model.even_routing = model.load_format == "dummy";
  if (options.profile || std::ranges::max(options.contexts) > 0) model.prefix_caching = false;
  std::optional<ExitOnSignal> exit_on_signal(std::in_place);
  std::optional<eval::LogitsDistance> distance;
  if (options.check) {
    NIBBLE_ASSIGN(distance, CheckAgainstReference(options));
    if (!options.json) Print(*distance);
  }
  NIBBLE_ASSIGN(const kernels::OpTable* const ops, ChooseOps(model.device, model.cpu_isa));
  kernels::OpProbe probe(*ops);
  NIBBLE_ASSIGN(const LoadedModel loaded, LoadEngine(model, {}, nullptr, &probe));
  exit_on_signal.reset();
  if (options.mixed) return BenchMixed(loaded, options);
  json::array rows;
  std::vector<Figures> measured;
  for (const int64_t context : options.contexts) {
    for (const int64_t prompt : options.prompts) {
      for (const int32_t batch : options.batches) {
        NIBBLE_ASSIGN(json::object row,
                      RunShape(loaded, probe, options,
                               {.prompt = prompt, .batch = batch, .context = context}, measured));
        if (distance) row["check"] = ToJson(*distance);
        rows.push_back(std::move(row));
      }
    }
  }
  // One shape gives an object, several a list.
  if (options.json)
    fmt::print("{}\n", rows.size() == 1 ? json::serialize(rows[0]) : json::serialize(rows));
  if (const std::optional<std::string> problem = LogitsProblem(measured))
    return Fail(Code::kInternal, "{}", *problem);
  return distance && !distance->matches() ? 1 : 0;
}

}  // namespace

int BenchModel(const BenchModelOptions& options) {
  auto status = RunBench(options);
  return status ? *status : Report(status.error());
}

}  // namespace nibble::apps
