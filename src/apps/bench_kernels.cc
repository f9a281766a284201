// nibble bench kernels: the CPU's linear kernels, or a GPU's ops, beside what the machine can read
// and multiply.
#include <fmt/format.h>

#include "apps/load.h"
#include "base/log.h"
#include "device/cpu.h"
#include "kernels/benchmark_linear.h"
#include "kernels/benchmark_ops.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;

json::object ToJson(const kernels::LinearMeasurement& m) {
  return {{"kernel", m.kernel},
          {"n", m.n},
          {"k", m.k},
          {"m", m.m},
          {"seconds", m.seconds},
          {"weight_bytes_per_second", m.bytes_per_second},
          {"ops_per_second", m.ops_per_second},
          {"read_share", m.read_share},
          {"compute_share", m.compute_share}};
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
          {"ops_per_second", m.flops / m.seconds}};
}

Result<WeightFormat> ParseFormat(const std::string& name) {
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kInt4,
                                    WeightFormat::kInt8, WeightFormat::kBf16})
    if (name == WeightFormatName(format)) return format;
  return Fail(Code::kInvalidArgument, "--format {}: expected nvfp4, mxfp4, int4, int8 or bf16",
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
                                .tokens = options.tokens,
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
  if (!options.json) fmt::print("{}, {} thread(s)\n", GetCpuInfo().model, options.threads);
  const auto print = [&](const kernels::LinearMeasurement& m) {
    if (!options.json) fmt::print("{}\n", kernels::FormatMeasurement(m));
    std::fflush(stdout);
  };
  auto report =
      kernels::BenchLinear({.variant = options.variant, .threads = options.threads}, print);
  if (!report) return Report(report.error());
  if (options.json) {
    json::array measurements;
    for (const kernels::LinearMeasurement& m : report->measurements)
      measurements.push_back(ToJson(m));
    fmt::print("{}\n",
               json::serialize(json::object{{"cpu", GetCpuInfo().model},
                                            {"variant", report->variant},
                                            {"threads", report->threads},
                                            {"int8_ops_per_second", report->int8_ops_per_second},
                                            {"int16_ops_per_second", report->int16_ops_per_second},
                                            {"bf16_ops_per_second", report->bf16_ops_per_second},
                                            {"measurements", std::move(measurements)}}));
  } else {
    fmt::print("probes: int8 {:.0f} GOP/s, int16 {:.0f} GOP/s, bf16 {:.0f} GOP/s ({})\n",
               report->int8_ops_per_second / 1e9, report->int16_ops_per_second / 1e9,
               report->bf16_ops_per_second / 1e9, report->variant);
  }
  return 0;
}

}  // namespace nibble::apps
