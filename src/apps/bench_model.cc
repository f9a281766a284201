// nibble bench model: prefill and decode rates of a real or dummy model through the engine, with
// bytes and shares.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/load.h"
#include "apps/signals.h"
#include "engine/generate.h"
#include "engine/logits_hash.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

struct Round {
  double prefill_seconds = 0;  // until every sequence has its first token
  double decode_seconds = 0;   // from then to the last token
  // Of each sequence's last logits. A sequence's prompt does not depend on the batch, nor may this.
  std::vector<std::string> logits_hashes;
};

// Ids that repeat nothing, so that no prefix is shared between sequences or rounds.
std::vector<int32_t> PromptTokens(int64_t count, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    seed = seed * 1664525u + 1013904223u;
    token = static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(vocab));
  }
  return tokens;
}

Result<Round> RunRound(engine::Engine& engine, const BenchModelOptions& options, uint32_t seed) {
  const int32_t vocab = engine.tokenizer().vocab_size();
  std::vector<std::shared_ptr<engine::CollectingSink>> sinks;
  std::atomic<int32_t> started{0};
  std::atomic<int64_t> last_start_ns{0};
  const Clock::time_point begin = Clock::now();
  for (int32_t i = 0; i < options.batch; ++i) {
    engine::Request request{
        .id = fmt::format("bench-{}", i),
        .tokens = PromptTokens(options.prompt, vocab, seed * 7919u + static_cast<uint32_t>(i))};
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = options.decode;
    auto first = std::make_shared<std::atomic<bool>>(true);
    auto sink = std::make_shared<engine::CollectingSink>(1, [&, first](const engine::DeltaEvent&) {
      if (first->exchange(false)) {
        last_start_ns = (Clock::now() - begin).count();
        ++started;
      }
    });
    request.sink = sink;
    sinks.push_back(std::move(sink));
    NIBBLE_ASSIGN(engine::Ticket ticket, engine.Reserve());
    NIBBLE_TRY(engine.Submit(std::move(request), std::move(ticket)));
  }
  Round round;
  for (const auto& sink : sinks) {
    NIBBLE_ASSIGN(const engine::Generation answer, sink->Wait());
    const std::optional<uint64_t> hash = answer.choices.front().done.logits_hash;
    round.logits_hashes.push_back(hash ? engine::FormatLogitsHash(*hash) : "");
  }
  const double total = std::chrono::duration<double>(Clock::now() - begin).count();
  round.prefill_seconds =
      std::chrono::duration<double>(Clock::duration(last_start_ns.load())).count();
  round.decode_seconds = total - round.prefill_seconds;
  return round;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

Result<int> RunBench(const BenchModelOptions& options) {
  ModelOptions model = options.model;
  model.max_num_seqs = std::max(model.max_num_seqs, options.batch);
  std::optional<ExitOnSignal> exit_on_signal(std::in_place);
  NIBBLE_ASSIGN(const LoadedModel loaded, LoadEngine(model));
  exit_on_signal.reset();
  engine::Engine& engine = *loaded.engine;
  if (options.prompt + options.decode > engine.max_model_len()) {
    return Fail(Code::kInvalidArgument, "--prompt {} and --decode {} exceed the context of {}",
                options.prompt, options.decode, engine.max_model_len());
  }
  std::vector<double> prefill, decode;
  std::vector<std::string> logits_hashes;  // of the last round
  for (int i = 0; i < options.repeat + 1; ++i) {
    NIBBLE_ASSIGN(Round round, RunRound(engine, options, static_cast<uint32_t>(i + 1)));
    if (i == 0) continue;  // warms up
    logits_hashes = std::move(round.logits_hashes);
    prefill.push_back(static_cast<double>(options.prompt * options.batch) / round.prefill_seconds);
    decode.push_back(static_cast<double>((options.decode - 1) * options.batch) /
                     round.decode_seconds);
  }
  const double prefill_rate = Median(prefill), decode_rate = Median(decode);
  const double step_rate = decode_rate / options.batch;  // weights are read once per step
  const double bandwidth = step_rate * static_cast<double>(engine.model_info().bytes_per_token);
  if (options.json) {
    fmt::print("{}\n", json::serialize(
                           json::object{{"model", options.model.model},
                                        {"prompt", options.prompt},
                                        {"decode", options.decode},
                                        {"batch", options.batch},
                                        {"threads", loaded.pool->threads()},
                                        {"activations", loaded.activations},
                                        {"prefill_tokens_per_second", prefill_rate},
                                        {"decode_tokens_per_second", decode_rate},
                                        {"bytes_per_token", engine.model_info().bytes_per_token},
                                        {"decode_bytes_per_second", bandwidth},
                                        {"read_bytes_per_second", loaded.read_bandwidth},
                                        {"share_of_read", bandwidth / loaded.read_bandwidth},
                                        {"last_logits", json::value_from(logits_hashes)}}));
    return 0;
  }
  fmt::print("prefill  {:9.1f} tokens/s   ({} x {} tokens, median of {})\n", prefill_rate,
             options.batch, options.prompt, options.repeat);
  fmt::print(
      "decode   {:9.1f} tokens/s   ({} x {} tokens): {:.2f} ms per step, {:.1f} GB/s, {:.0f} % of "
      "{:.1f} GB/s\n",
      decode_rate, options.batch, options.decode, 1e3 / step_rate, bandwidth / 1e9,
      100 * bandwidth / loaded.read_bandwidth, loaded.read_bandwidth / 1e9);
  fmt::print("last logits of sequence 0: {}\n", logits_hashes.front());
  return 0;
}

}  // namespace

int BenchModel(const BenchModelOptions& options) {
  auto status = RunBench(options);
  return status ? *status : Report(status.error());
}

}  // namespace nibble::apps
