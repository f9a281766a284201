#include "kernels/benchmark_linear.h"

#include <time.h>

#include <algorithm>
#include <chrono>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "device/cpu.h"
#include "kernels/benchmark_weight.h"
#include "kernels/cpu/linear/packed_weight.h"
#include "numerics/bf16.h"

namespace nibble::kernels {
namespace {

constexpr double kMinSeconds = 0.1;  // per measurement
constexpr int kMinRepetitions = 5;
constexpr int64_t kStreamTokens = 8;  // up to here memory is the limit

bool IsInteger(WeightFormat format) {
  return format == WeightFormat::kInt4 || format == WeightFormat::kInt8;
}

// "int4 g128 x bf16"
std::string KernelName(const PackedWeight& weight) {
  const std::string group =
      IsInteger(weight.format()) ? fmt::format(" g{}", kBenchIntGroup) : std::string();
  return fmt::format("{}{} x {}", WeightFormatName(weight.format()), group,
                     ActivationFormatName(weight.activations()));
}

double Now(bool thread_time) {
  if (!thread_time) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The shortest of several runs, in seconds.
template <typename Fn>
double BestSeconds(bool thread_time, Fn&& fn) {
  double best = 1e30;
  double total = 0;
  for (int repetition = 0; repetition < kMinRepetitions || total < kMinSeconds; ++repetition) {
    const double start = Now(thread_time);
    fn();
    const double seconds = Now(thread_time) - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

double ProbeOps(ThreadPool& pool, cpu::ComputeProbe probe) {
  if (probe == nullptr) return 0;
  constexpr int64_t kIterations = 200000;
  int64_t ops = 0;
  const double seconds = BestSeconds(pool.threads() == 1, [&] {
    pool.ParallelFor(pool.threads(), 1, [&](int64_t, int64_t, int thread) {
      const int64_t done = probe(kIterations);
      if (thread == 0) ops = done;
    });
  });
  return static_cast<double>(ops * pool.threads()) / seconds;
}

// One weight, measured over several numbers of tokens.
class LinearBench {
 public:
  LinearBench(const OpTable& ops, ThreadPool& pool, const PackedWeight& weight,
              const LinearBenchReport& report)
      : ops_(ops), pool_(pool), weight_(weight), report_(report) {
    const auto& packed = static_cast<const cpu::CpuPackedWeight&>(weight);
    const auto size = static_cast<size_t>(packed.panels() * packed.panel_bytes());
    read_ = MeasureReadBandwidth(pool, {packed.panel(0), size});
  }

  Result<LinearMeasurement> Measure(int64_t m) {
    const int64_t n = weight_.n();
    const int64_t k = weight_.k();
    const size_t workspace_bytes = ops_.linear_workspace(m, k);
    NIBBLE_ASSIGN(Buffer workspace, Buffer::Allocate(workspace_bytes));
    NIBBLE_ASSIGN(Buffer x, Buffer::Allocate(m * k * 2));
    NIBBLE_ASSIGN(Buffer y, Buffer::Allocate(m * n * 2));
    BenchBits bits;
    for (int64_t i = 0; i < m * k; ++i) {
      x.as<uint16_t>()[i] = static_cast<uint16_t>(0x3F00 + (bits.Next() & 0x80FFu));
    }
    const OpContext context = {
        .pool = &pool_, .workspace = workspace.data(), .workspace_bytes = workspace_bytes};
    const LinearParams params = {.x = x.as<uint16_t>(),
                                 .x_stride = k,
                                 .weight = &weight_,
                                 .y = y.as<uint16_t>(),
                                 .y_stride = n,
                                 .m = m};
    LinearMeasurement result = {.n = n, .k = k, .m = m};
    result.kernel = KernelName(weight_);
    ops_.linear(context, params);  // first touch of the output
    result.seconds = BestSeconds(pool_.threads() == 1, [&] { ops_.linear(context, params); });
    result.bytes_per_second = static_cast<double>(weight_.bytes()) / result.seconds;
    result.ops_per_second =
        2.0 * static_cast<double>(m * n) * static_cast<double>(k) / result.seconds;
    result.read_share = result.bytes_per_second / read_;
    const double peak = Peak();
    if (peak > 0) result.compute_share = result.ops_per_second / peak;
    return result;
  }

 private:
  double Peak() const {
    switch (weight_.activations()) {
      case ActivationFormat::kInt8:
        return report_.int8_ops_per_second;
      case ActivationFormat::kInt16:
        return report_.int16_ops_per_second;
      default:
        return report_.bf16_ops_per_second;
    }
  }

  const OpTable& ops_;
  ThreadPool& pool_;
  const PackedWeight& weight_;
  const LinearBenchReport& report_;
  double read_ = 0;
};

}  // namespace

Result<LinearBenchReport> BenchLinear(
    const LinearBenchOptions& options,
    const std::function<void(const LinearMeasurement&)>& on_measurement) {
  NIBBLE_ASSIGN(const OpTable* ops, CpuOpsVariant(options.variant));
  ThreadPool pool(options.threads);
  LinearBenchReport report = {.variant = std::string(ops->variant), .threads = options.threads};

  struct Case {
    WeightFormat format;
    ActivationFormat activations;
  };
  constexpr Case kCases[] = {{WeightFormat::kNvfp4, ActivationFormat::kInt8},
                             {WeightFormat::kNvfp4, ActivationFormat::kInt16},
                             {WeightFormat::kNvfp4, ActivationFormat::kBf16},
                             {WeightFormat::kMxfp4, ActivationFormat::kInt8},
                             {WeightFormat::kMxfp4, ActivationFormat::kInt16},
                             {WeightFormat::kInt4, ActivationFormat::kInt8},
                             {WeightFormat::kInt4, ActivationFormat::kBf16},
                             {WeightFormat::kInt8, ActivationFormat::kInt8},
                             {WeightFormat::kInt8, ActivationFormat::kBf16},
                             {WeightFormat::kBf16, ActivationFormat::kBf16}};
  for (const Case& item : kCases) {
    for (const bool stream : {true, false}) {
      NIBBLE_ASSIGN(const auto weight,
                    MakeBenchWeight(*ops, pool, item.format, item.activations,
                                    stream ? options.stream_n : options.batch_n, options.k));
      if (report.int8_ops_per_second == 0) {
        const auto& kernels = static_cast<const cpu::CpuPackedWeight&>(*weight).kernels();
        report.int8_ops_per_second = ProbeOps(pool, kernels.int8_probe);
        report.int16_ops_per_second = ProbeOps(pool, kernels.int16_probe);
        report.bf16_ops_per_second = ProbeOps(pool, kernels.bf16_probe);
      }
      LinearBench bench(*ops, pool, *weight, report);
      for (const int64_t m : options.tokens) {
        if ((m <= kStreamTokens) != stream) continue;
        NIBBLE_ASSIGN(LinearMeasurement measurement, bench.Measure(m));
        if (on_measurement) on_measurement(measurement);
        report.measurements.push_back(std::move(measurement));
      }
    }
  }
  return report;
}

std::string FormatMeasurement(const LinearMeasurement& measurement) {
  return fmt::format(
      "{:16} {:6} x {:<5} M={:<4} {:7.2f} GB/s ({:3.0f} % of read) {:7.1f} GOP/s ({:3.0f} % of "
      "peak)",
      measurement.kernel, measurement.n, measurement.k, measurement.m,
      measurement.bytes_per_second / 1e9, 100 * measurement.read_share,
      measurement.ops_per_second / 1e9, 100 * measurement.compute_share);
}

}  // namespace nibble::kernels
