#include "apps/bench_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <utility>

namespace nibble::apps {
namespace {

namespace json = boost::json;

constexpr int64_t kInspectedSteps = 8;  // the first of them may lack sequences
constexpr int64_t kWarmSteps = 5;       // a step's second run is recorded
constexpr int kRounds = 3;

// What a step calls, with the sums over so many steps.
struct Calls {
  std::vector<kernels::OpProbe::Kind> kinds;
  double steps = 0;
};

Result<Calls> TakeCalls(kernels::OpProbe& probe, const BenchShape& shape) {
  const auto embed =
      std::ranges::find(probe.kinds(), std::string_view("embed"), &kernels::OpProbe::Kind::op);
  if (embed == probe.kinds().end())
    return Fail(Code::kInternal, "no step of {} tokens was seen", shape.batch);
  return Calls{.kinds = probe.kinds(), .steps = static_cast<double>(embed->calls)};
}

Result<Calls> InspectStep(engine::Engine& engine, kernels::OpProbe& probe,
                          const BenchShape& shape) {
  probe.Inspect({.tokens = shape.batch, .context = shape.length()});
  const auto round =
      RunPrompts(engine, {}, {.prompt = 1, .batch = shape.batch}, shape.batch + kInspectedSteps, 1);
  probe.PassOn();
  if (!round) return tl::unexpected(round.error());
  return TakeCalls(probe, shape);
}

// The least of a few rounds: what is left out costs the same in each.
Result<double> StepSeconds(engine::Engine& engine, const BenchSampling& sampling,
                           const BenchShape& shape, int64_t answer) {
  NIBBLE_TRY(RunDecode(engine, sampling, shape, shape.batch / 8 + kWarmSteps, 1));
  double least = 1e30;
  for (int i = 0; i < kRounds; ++i) {
    NIBBLE_ASSIGN(const DecodeRound round, RunDecode(engine, sampling, shape, answer, 1));
    least = std::min(least, round.step_seconds);
  }
  return least;
}

// On the host nothing overlaps: calls are timed.
Status TimeOps(engine::Engine& engine, kernels::OpProbe& probe, const BenchSampling& sampling,
               int64_t answer, StepProfile& profile) {
  probe.Time({.tokens = profile.shape.batch, .context = profile.shape.length()});
  const auto round = RunDecode(engine, sampling, profile.shape, answer, 1);
  probe.PassOn();
  if (!round) return tl::unexpected(round.error());
  profile.step_seconds = round->step_seconds;
  NIBBLE_ASSIGN(const Calls timed, TakeCalls(probe, profile.shape));
  for (const kernels::OpProbe::Kind& kind : timed.kinds)
    for (OpCost& op : profile.ops)
      if (op.op == kind.name()) op.seconds = kind.seconds / timed.steps;
  return {};
}

Status OmitOps(engine::Engine& engine, kernels::OpProbe& probe, const BenchSampling& sampling,
               int64_t answer, const Calls& calls, StepProfile& profile) {
  NIBBLE_ASSIGN(profile.step_seconds, StepSeconds(engine, sampling, profile.shape, answer));
  for (size_t i = 0; i < calls.kinds.size(); ++i) {
    probe.Omit(calls.kinds[i]);
    const auto without = StepSeconds(engine, sampling, profile.shape, answer);
    probe.PassOn();
    if (!without) return tl::unexpected(without.error());
    profile.ops[i].seconds = profile.step_seconds - *without;
  }
  return {};
}

}  // namespace

Result<double> CountExperts(engine::Engine& engine, kernels::OpProbe& probe, int32_t batch) {
  if (engine.model_info().expert_layers.empty()) return 0.0;
  NIBBLE_TRY(InspectStep(engine, probe, {.prompt = 1, .batch = batch}));
  return static_cast<double>(probe.experts_hit()) / static_cast<double>(probe.expert_calls());
}

Result<StepProfile> ProfileDecode(engine::Engine& engine, kernels::OpProbe& probe,
                                  const BenchSampling& sampling, const BenchShape& shape,
                                  int64_t answer) {
  NIBBLE_ASSIGN(const Calls calls, InspectStep(engine, probe, shape));
  StepProfile profile{.shape = shape};
  for (const kernels::OpProbe::Kind& kind : calls.kinds)
    profile.ops.push_back({.op = kind.name(),
                           .calls = static_cast<double>(kind.calls) / calls.steps,
                           .bytes = kind.bytes / calls.steps});
  if (probe.table().device->host_memory()) {
    NIBBLE_TRY(TimeOps(engine, probe, sampling, answer, profile));
  } else {
    NIBBLE_TRY(OmitOps(engine, probe, sampling, answer, calls, profile));
  }
  std::ranges::sort(profile.ops, std::greater(), &OpCost::seconds);
  return profile;
}

json::object ToJson(const StepProfile& profile, double read_bytes_per_second) {
  json::array ops;
  for (const OpCost& op : profile.ops) {
    ops.push_back(json::object{{"op", op.op},
                               {"calls", op.calls},
                               {"microseconds", 1e6 * op.seconds},
                               {"share", op.seconds / profile.step_seconds},
                               {"bytes", op.bytes},
                               {"floor_microseconds", 1e6 * op.bytes / read_bytes_per_second}});
  }
  return {{"batch", profile.shape.batch},
          {"context", profile.shape.length()},
          {"milliseconds_per_step", 1e3 * profile.step_seconds},
          {"read_bytes_per_second", read_bytes_per_second},
          {"ops", std::move(ops)}};
}

void Print(const StepProfile& profile, double read_bytes_per_second) {
  fmt::print(
      "a decode step of {} behind {}: {:.3f} ms. Per op what it costs, and how long its bytes take "
      "at "
      "{:.0f} GB/s:\n",
      profile.shape.batch, profile.shape.length(), 1e3 * profile.step_seconds,
      read_bytes_per_second / 1e9);
  OpCost sum{.op = "together"};
  const auto print = [&](const OpCost& op) {
    fmt::print("  {:<28} {:5.0f} calls {:9.1f} us {:5.1f} % {:9.1f} MB, at least {:8.1f} us\n",
               op.op, op.calls, 1e6 * op.seconds, 100 * op.seconds / profile.step_seconds,
               op.bytes / 1e6, 1e6 * op.bytes / read_bytes_per_second);
  };
  for (const OpCost& op : profile.ops) {
    print(op);
    sum.calls += op.calls;
    sum.seconds += op.seconds;
    sum.bytes += op.bytes;
  }
  print(sum);
  std::fflush(stdout);
}

}  // namespace nibble::apps
