// nibble bench kernels: the linear kernels beside what this machine can read and multiply.
#include <fmt/format.h>

#include "apps/load.h"
#include "base/log.h"
#include "device/cpu.h"
#include "kernels/benchmark_linear.h"

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

}  // namespace

int BenchKernels(const BenchKernelsOptions& options) {
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
