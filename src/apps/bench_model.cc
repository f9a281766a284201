// nibble bench model: prefill and decode rates of a real or dummy model through the engine, with
// bytes and shares.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <latch>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/bench_mixed.h"
#include "apps/load.h"
#include "apps/prompt_tokens.h"
#include "apps/signals.h"
#include "apps/step_bytes.h"
#include "engine/generate.h"
#include "engine/logits_hash.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

// One row of the result.
struct Shape {
  int64_t prompt = 0;
  int32_t batch = 0;
  int64_t context = 0;
};

struct Round {
  double prefill_seconds = 0;  // until every sequence has its first token
  double decode_seconds = 0;   // from then to the last token
  double idle_share = 0;       // of these, in which the device had nothing to do
  // Of each sequence's last logits. A sequence's prompt does not depend on the batch, nor may this.
  std::vector<std::string> logits_hashes;
};

struct Figures {
  Shape shape;
  double prefill_rate = 0;    // tokens per second, all sequences
  double decode_rate = 0;     // the same
  double idle_share = 0;      // of the decoding time, in which the device had nothing to do
  StepBytes read;             // of a decode step
  double bandwidth = 0;       // read.bytes per second
  double predicted_gb10 = 0;  // tokens per second, all sequences
  double predicted_h100 = 0;
  std::vector<std::string> logits_hashes;  // of the last round
};

Result<Round> RunRound(engine::Engine& engine, const BenchModelOptions& options, const Shape& shape,
                       uint32_t seed) {
  const int32_t vocab = engine.tokenizer().vocab_size();
  std::vector<std::shared_ptr<engine::CollectingSink>> sinks;
  std::atomic<int64_t> last_start_ns{0};
  std::latch started(shape.batch);
  const Clock::time_point begin = Clock::now();
  for (int32_t i = 0; i < shape.batch; ++i) {
    engine::Request request{.id = fmt::format("bench-{}", i),
                            .tokens = PromptTokens(shape.context + shape.prompt, vocab,
                                                   seed * 7919u + static_cast<uint32_t>(i)),
                            .assumed_context = shape.context};
    request.sampling.temperature = static_cast<float>(options.temperature);
    request.sampling.top_p = static_cast<float>(options.top_p);
    request.sampling.seed = i;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = options.decode;
    auto first = std::make_shared<std::atomic<bool>>(true);
    auto sink = std::make_shared<engine::CollectingSink>(1, [&, first](const engine::DeltaEvent&) {
      if (!first->exchange(false)) return;
      last_start_ns = (Clock::now() - begin).count();
      started.count_down();
    });
    request.sink = sink;
    sinks.push_back(std::move(sink));
    NIBBLE_ASSIGN(engine::Ticket ticket, engine.Reserve());
    NIBBLE_TRY(engine.Submit(std::move(request), std::move(ticket)));
  }
  // A request that fails never starts, and says so in time.
  while (!started.try_wait() && !sinks.back()->WaitFor(std::chrono::milliseconds(1))) {
  }
  const Clock::time_point decoding = Clock::now();
  const double busy_before = engine.stats().device_seconds;
  Round round;
  for (const auto& sink : sinks) {
    NIBBLE_ASSIGN(const engine::Generation answer, sink->Wait());
    const std::optional<uint64_t> hash = answer.choices.front().done.logits_hash;
    round.logits_hashes.push_back(hash ? engine::FormatLogitsHash(*hash) : "");
  }
  const double busy = engine.stats().device_seconds - busy_before;
  const double total = std::chrono::duration<double>(Clock::now() - begin).count();
  round.idle_share =
      std::max(0.0, 1 - busy / std::chrono::duration<double>(Clock::now() - decoding).count());
  round.prefill_seconds =
      std::chrono::duration<double>(Clock::duration(last_start_ns.load())).count();
  round.decode_seconds = total - round.prefill_seconds;
  return round;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

Result<Figures> Measure(engine::Engine& engine, const BenchModelOptions& options,
                        const Shape& shape) {
  if (shape.context + shape.prompt + options.decode > engine.max_model_len()) {
    return Fail(Code::kInvalidArgument,
                "--context {}, --prompt {} and --decode {} exceed the context of {}", shape.context,
                shape.prompt, options.decode, engine.max_model_len());
  }
  Figures figures{.shape = shape};
  std::vector<double> prefill, decode, idle;
  for (int i = 0; i < options.repeat + 1; ++i) {
    NIBBLE_ASSIGN(Round round, RunRound(engine, options, shape, static_cast<uint32_t>(i + 1)));
    if (i == 0) continue;  // warms up
    figures.logits_hashes = std::move(round.logits_hashes);
    prefill.push_back(static_cast<double>(shape.prompt * shape.batch) / round.prefill_seconds);
    decode.push_back(static_cast<double>((options.decode - 1) * shape.batch) /
                     round.decode_seconds);
    idle.push_back(round.idle_share);
  }
  figures.prefill_rate = Median(prefill);
  figures.decode_rate = Median(decode);
  figures.idle_share = Median(idle);
  const models::ModelInfo& info = engine.model_info();
  figures.read = CountStepBytes(info, shape.batch, shape.context + shape.prompt, options.decode - 1,
                                options.model.load_format == "dummy");
  figures.bandwidth = figures.decode_rate / shape.batch * figures.read.bytes;
  figures.predicted_gb10 = shape.batch / PredictStepSeconds(kGb10, info, figures.read.bytes);
  figures.predicted_h100 = shape.batch / PredictStepSeconds(kH100, info, figures.read.bytes);
  return figures;
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
      {"device_idle_share", figures.idle_share},
      {"bytes_per_token", loaded.engine->model_info().bytes_per_token},
      {"bytes_per_step", figures.read.bytes},
      {"experts_hit", figures.read.experts_hit},
      {"experts_hit_by_random_choices", figures.read.experts_likely},
      {"predicted_unmeasured_tokens_per_second",
       json::object{{kGb10.name, figures.predicted_gb10}, {kH100.name, figures.predicted_h100}}},
      {"decode_bytes_per_second", figures.bandwidth},
      {"read_bytes_per_second", loaded.read_bandwidth},
      {"share_of_read", figures.bandwidth / loaded.read_bandwidth},
      {"last_logits", json::value_from(figures.logits_hashes)}};
}

void Print(const Figures& figures, const BenchModelOptions& options, double ceiling) {
  const Shape& shape = figures.shape;
  const std::string context =
      shape.context > 0 ? fmt::format(" behind {} in the cache", shape.context) : "";
  fmt::print("prefill  {:9.1f} tokens/s   ({} x {} tokens{}, median of {})\n", figures.prefill_rate,
             shape.batch, shape.prompt, context, options.repeat);
  fmt::print(
      "decode   {:9.1f} tokens/s   ({} x {} tokens): {:.3f} ms per step, in {:.1f} % of which the "
      "device idles; {:.1f} GB/s, {:.0f} % of {:.1f} GB/s\n",
      figures.decode_rate, shape.batch, options.decode, 1e3 * shape.batch / figures.decode_rate,
      100 * figures.idle_share, figures.bandwidth / 1e9, 100 * figures.bandwidth / ceiling,
      ceiling / 1e9);
  if (figures.read.experts_hit > 0)
    fmt::print(
        "experts  {:.1f} hit per layer and step ({:.1f} by random choices); {:.2f} GB of "
        "weights read per step\n",
        figures.read.experts_hit, figures.read.experts_likely, figures.read.bytes / 1e9);
  fmt::print("predicted from these bytes, not measured: {} {:.0f} tokens/s, {} {:.0f} tokens/s\n",
             kGb10.name, figures.predicted_gb10, kH100.name, figures.predicted_h100);
  fmt::print("last logits of sequence 0: {}\n", figures.logits_hashes.front());
  std::fflush(stdout);
}

// Decode steps alone: what came before is forgotten after the first token.
Status PrintProfile(engine::Engine& engine, const BenchModelOptions& options, const Shape& shape,
                    kernels::OpProfile& profile) {
  BenchModelOptions one = options;
  one.decode = 2;
  NIBBLE_TRY(RunRound(engine, one, shape, 99));
  profile.Take();
  // The difference of a long and a short answer to equal prompts.
  const auto sums =
      [&](int64_t decode) -> Result<std::map<std::string_view, kernels::OpProfile::Line>> {
    one.decode = decode;
    NIBBLE_TRY(RunRound(engine, one, shape, 100 + static_cast<uint32_t>(decode)));
    std::map<std::string_view, kernels::OpProfile::Line> lines;
    for (const auto& line : profile.Take()) lines[line.op] = line;
    return lines;
  };
  constexpr int64_t kSteps = 8;
  NIBBLE_ASSIGN(const auto few, sums(2));
  NIBBLE_ASSIGN(auto many, sums(2 + kSteps));
  double total = 0;
  for (auto& [name, line] : many) {
    if (const auto before = few.find(name); before != few.end()) {
      line.seconds -= before->second.seconds;
      line.calls -= before->second.calls;
    }
    total += line.seconds;
  }
  fmt::print("a decode step of {} by op, each alone; {:.0f} us together\n", shape.batch,
             1e6 * total / kSteps);
  for (const auto& [name, line] : many) {
    if (line.calls == 0) continue;
    fmt::print("  {:<20} {:5.0f} calls {:9.1f} us {:7.2f} us each {:5.1f} %\n", name,
               static_cast<double>(line.calls) / kSteps, 1e6 * line.seconds / kSteps,
               1e6 * line.seconds / static_cast<double>(line.calls), 100 * line.seconds / total);
  }
  return {};
}

Result<int> RunBench(const BenchModelOptions& options) {
  ModelOptions model = options.model;
  model.max_num_seqs =
      std::max(model.max_num_seqs, std::ranges::max(options.batches) + (options.mixed ? 1 : 0));
  // Made-up weights would make the router choose unevenly.
  model.even_routing = model.load_format == "dummy";
  if (std::ranges::max(options.contexts) > 0) model.prefix_caching = false;
  std::optional<ExitOnSignal> exit_on_signal(std::in_place);
  std::optional<kernels::OpProfile> profile;
  if (options.profile) {
    NIBBLE_ASSIGN(const kernels::OpTable* const ops, ChooseOps(model.device));
    profile.emplace(*ops);
  }
  NIBBLE_ASSIGN(const LoadedModel loaded,
                LoadEngine(model, {}, nullptr, profile ? &*profile : nullptr));
  exit_on_signal.reset();
  if (options.mixed) return BenchMixed(loaded, options);
  json::array rows;
  for (const int64_t context : options.contexts) {
    for (const int64_t prompt : options.prompts) {
      for (const int32_t batch : options.batches) {
        if (profile) {
          NIBBLE_TRY(PrintProfile(*loaded.engine, options, {prompt, batch, context}, *profile));
          continue;
        }
        NIBBLE_ASSIGN(const Figures figures,
                      Measure(*loaded.engine, options, {prompt, batch, context}));
        if (options.json) {
          rows.push_back(ToJson(figures, options, loaded));
        } else {
          Print(figures, options, loaded.read_bandwidth);
        }
      }
    }
  }
  if (!options.json || profile) return 0;
  // One shape gives an object, several a list.
  fmt::print("{}\n", rows.size() == 1 ? json::serialize(rows[0]) : json::serialize(rows));
  return 0;
}

}  // namespace

int BenchModel(const BenchModelOptions& options) {
  auto status = RunBench(options);
  return status ? *status : Report(status.error());
}

}  // namespace nibble::apps
