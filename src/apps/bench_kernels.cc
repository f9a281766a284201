// nibble bench kernels: the CPU's linear kernels, or a GPU's ops, beside what the machine can read
// and multiply.
#include <fmt/format.h>

#include "apps/load.h"
#include "apps/roofline.h"
#include "base/file.h"
#include "base/log.h"
#include "device/cpu.h"
#include "kernels/benchmark_cpu_ops.h"
#include "kernels/benchmark_linear.h"
#include "kernels/benchmark_ops.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;

json::array ToJson(const std::vector<kernels::LinearVerdict>& verdicts) {
  json::array array;
  for (const kernels::LinearVerdict& verdict : verdicts) {
    array.push_back(json::object{{"ceiling", kernels::LinearCeilingName(verdict.ceiling)},
                                 {"goal", verdict.goal},
                                 {"reached", verdict.reached},
                                 {"met", verdict.met()}});
  }
  return array;
}

json::object ToJson(const kernels::LinearMeasurement& m) {
  return {{"kernel", m.kernel},
          {"threads", m.threads},
          {"n", m.n},
          {"k", m.k},
          {"m", m.m},
          {"seconds", m.seconds},
          {"weight_bytes_per_second", m.bytes_per_second},
          {"ops_per_second", m.ops_per_second},
          {"read_bytes_per_second", m.read},
          {"read_share", m.read_share()},
          {"compute_share", m.compute_share()},
          {"goals", ToJson(m.verdicts)}};
}

json::object ToJson(const kernels::LinearProbes& probes) {
  return {{"threads", probes.threads},
          {"int8_ops_per_second", probes.int8},
          {"int16_ops_per_second", probes.int16},
          {"bf16_ops_per_second", probes.bf16},
          {"best_int8_ops_per_second", probes.best_int8}};
}

json::object ToJson(const kernels::LinearBenchReport& report) {
  json::array probes, measurements;
  for (const auto& item : report.probes) probes.push_back(ToJson(item));
  for (const auto& item : report.measurements) measurements.push_back(ToJson(item));
  return {{"cpu", GetCpuInfo().model},
          {"variant", report.variant},
          {"probes", std::move(probes)},
          {"measurements", std::move(measurements)}};
}

json::object ToJson(const kernels::CpuOpMeasurement& m) {
  return {{"op", m.op},
          {"shape", m.shape},
          {"threads", m.threads},
          {"m", m.m},
          {"context", m.context},
          {"seconds", m.seconds},
          {"bytes_per_second", m.bytes / m.seconds},
          {"ideal_seconds", m.ideal_seconds},
          {"goal", m.goal},
          {"reached", m.reached()},
          {"met", m.met()}};
}

void PrintSummary(const kernels::LinearBenchReport& report) {
  for (const kernels::LinearProbes& probes : report.probes) {
    fmt::print(
        "probes, {} thread(s): int8 {:.0f} GOP/s, int16 {:.0f} GOP/s, bf16 {:.0f} GOP/s ({})\n",
        probes.threads, probes.int8 / 1e9, probes.int16 / 1e9, probes.bf16 / 1e9, report.variant);
  }
  int goals = 0, met = 0;
  for (const kernels::LinearMeasurement& m : report.measurements) {
    for (const kernels::LinearVerdict& verdict : m.verdicts) {
      ++goals;
      met += verdict.met() ? 1 : 0;
    }
  }
  if (goals > 0) fmt::print("goals met: {} of {}\n", met, goals);
}

json::object ToJson(const kernels::OpMeasurement& m, double ceiling) {
  return {{"op", m.op},
          {"shape", m.shape},
          {"m", m.m},
          {"context", m.context},
          {"seconds", m.seconds},
          {"bytes_per_second", m.bytes / m.seconds},
          {"read_share", m.bytes / m.seconds / ceiling},
          {"read_only_seconds", m.read_seconds},
          {"bf16_cublaslt_seconds", m.bf16_seconds},
          {"ops_per_second", m.flops / m.seconds}};
}

std::vector<int64_t> TokensOr(const BenchKernelsOptions& options, std::vector<int64_t> otherwise) {
  return options.tokens.empty() ? otherwise : options.tokens;
}

Result<WeightFormat> ParseFormat(const std::string& name) {
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kInt4,
                                    WeightFormat::kInt8, WeightFormat::kFp8, WeightFormat::kBf16})
    if (name == WeightFormatName(format)) return format;
  return Fail(Code::kInvalidArgument, "--format {}: expected nvfp4, mxfp4, int4, int8, fp8 or bf16",
              name);
}

Status BenchGpu(const kernels::OpTable& ops, const BenchKernelsOptions& options) {
  NIBBLE_ASSIGN(const WeightFormat format, ParseFormat(options.format));
  const double ceiling = ops.read_bandwidth();
  if (!options.json)
    fmt::print("{}, reads {:.0f} GB/s; {} weights, chains of dependent launches, cold\n",
               ops.device->name(), ceiling / 1e9, options.format);
  json::array measurements;
  NIBBLE_TRY(kernels::BenchOps(ops,
                               {.ops = options.ops,
                                .shapes = options.shapes,
                                .tokens = TokensOr(options, {1, 8, 16, 64, 512, 2048}),
                                .contexts = options.contexts,
                                .format = format},
                               [&](const kernels::OpMeasurement& m) {
                                 measurements.push_back(ToJson(m, ceiling));
                                 if (options.json) return;
                                 fmt::print("{}\n", kernels::FormatMeasurement(m, ceiling));
                                 std::fflush(stdout);
                               }));
  if (options.json)
    fmt::print("{}\n", json::serialize(json::object{{"device", ops.device->name()},
                                                    {"read_bytes_per_second", ceiling},
                                                    {"format", options.format},
                                                    {"measurements", std::move(measurements)}}));
  return {};
}

bool Wants(const BenchKernelsOptions& options, std::string_view op) {
  return std::ranges::find(options.ops, op) != options.ops.end();
}

// The CPU's ops beside linears, unless single linears are asked for.
Status BenchOtherOps(const BenchKernelsOptions& options, const kernels::LinearBenchReport& report,
                     json::array& measurements) {
  if (!options.kernels.empty()) return {};
  NIBBLE_ASSIGN(const kernels::OpTable* ops, kernels::CpuOpsVariant(options.variant));
  const auto take = [&](const kernels::CpuOpMeasurement& m) {
    measurements.push_back(ToJson(m));
    if (!options.json) fmt::print("{}\n", kernels::FormatMeasurement(m));
    std::fflush(stdout);
  };
  for (const kernels::LinearProbes& probes : report.probes) {
    ThreadPool pool(probes.threads);
    if (Wants(options, "moe")) NIBBLE_TRY(kernels::BenchCpuExperts(*ops, pool, take));
    if (Wants(options, "attention"))
      NIBBLE_TRY(kernels::BenchCpuAttention(*ops, pool, probes.bf16, take));
  }
  return {};
}

}  // namespace

int BenchKernels(const BenchKernelsOptions& options) {
  if (options.device != "cpu") {
    const auto ops = ChooseOps(options.device);
    if (!ops) return Report(ops.error());
    if (!(*ops)->device->host_memory()) {
      const Status done = BenchGpu(**ops, options);
      return done ? 0 : Report(done.error());
    }
  }
  if (!options.json) fmt::print("{}\n", GetCpuInfo().model);
  const auto print = [&](const kernels::LinearMeasurement& m) {
    if (!options.json) fmt::print("{}\n", kernels::FormatMeasurement(m));
    std::fflush(stdout);
  };
  const bool linears = Wants(options, "linear");
  auto report = kernels::BenchLinear(
      {.variant = options.variant,
       .threads = options.threads,
       .kernels = options.kernels,
       .tokens = linears ? TokensOr(options, {1, 4, 16, 128, 512}) : std::vector<int64_t>(),
       .stream_bytes = options.stream_bytes,
       .batch_n = options.batch_n,
       .k = options.k},
      print);
  if (!report) return Report(report.error());
  json::array others;
  if (const Status done = BenchOtherOps(options, *report, others); !done)
    return Report(done.error());
  if (options.json) {
    json::object result = ToJson(*report);
    result["ops"] = std::move(others);
    fmt::print("{}\n", json::serialize(result));
  } else {
    PrintSummary(*report);
  }
  if (options.plot.empty()) return 0;
  const std::string svg = RooflineSvg(*report, GetCpuInfo().model);
  if (auto status = WriteFileAtomic(options.plot, svg); !status) return Report(status.error());
  return 0;
}

}  // namespace nibble::apps
