#include "kernels/benchmark_linear.h"

#include <unistd.h>

#include <algorithm>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "device/cpu.h"
#include "kernels/benchmark_time.h"
#include "kernels/benchmark_weight.h"
#include "kernels/cpu/linear/packed_weight.h"
#include "kernels/linear_goals.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kStreamTokens = 8;  // up to here memory is the limit

bool IsInteger(WeightFormat format) {
  return format == WeightFormat::kInt4 || format == WeightFormat::kInt8;
}

double ProbeOps(ThreadPool& pool, cpu::ComputeProbe probe) {
  if (probe == nullptr) return 0;
  constexpr int64_t kIterations = 200000;
  int64_t ops = 0;
  const double seconds = BestSeconds(pool.threads() == 1, [&] {
    pool.OnEveryThread([&](int thread) {
      const int64_t done = probe(kIterations);
      if (thread == 0) ops = done;
    });
  });
  return static_cast<double>(ops * pool.threads()) / seconds;
}

struct Case {
  WeightFormat format;
  ActivationFormat activations;
};
constexpr Case kCases[] = {{WeightFormat::kNvfp4, ActivationFormat::kInt8},
                           {WeightFormat::kNvfp4, ActivationFormat::kInt16},
                           {WeightFormat::kNvfp4, ActivationFormat::kBf16},
                           {WeightFormat::kNvfp4, ActivationFormat::kRequantized},
                           {WeightFormat::kMxfp4, ActivationFormat::kInt8},
                           {WeightFormat::kMxfp4, ActivationFormat::kInt16},
                           {WeightFormat::kMxfp4, ActivationFormat::kBf16},
                           {WeightFormat::kMxfp4, ActivationFormat::kRequantized},
                           {WeightFormat::kInt4, ActivationFormat::kInt8},
                           {WeightFormat::kInt4, ActivationFormat::kBf16},
                           {WeightFormat::kInt8, ActivationFormat::kInt8},
                           {WeightFormat::kInt8, ActivationFormat::kBf16},
                           {WeightFormat::kFp8, ActivationFormat::kBf16},
                           {WeightFormat::kBf16, ActivationFormat::kBf16}};

// "int4 g128 x bf16"
std::string KernelName(const Case& item) {
  const std::string group =
      IsInteger(item.format) ? fmt::format(" g{}", kBenchIntGroup) : std::string();
  return fmt::format("{}{} x {}", WeightFormatName(item.format), group,
                     ActivationFormatName(item.activations));
}

std::string WithoutSpaces(std::string name) {
  std::erase(name, ' ');
  return name;
}

// The cases that `names` names; all of them if it names none.
Result<std::vector<Case>> ChooseCases(const std::vector<std::string>& names) {
  std::vector<Case> chosen;
  for (const Case& item : kCases) {
    const std::string own = WithoutSpaces(KernelName(item));
    const bool named = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return WithoutSpaces(name) == own;
    });
    if (names.empty() || named) chosen.push_back(item);
  }
  for (const std::string& name : names) {
    const bool known = std::any_of(std::begin(kCases), std::end(kCases), [&](const Case& item) {
      return WithoutSpaces(KernelName(item)) == WithoutSpaces(name);
    });
    if (known) continue;
    std::string all;
    for (const Case& item : kCases) {
      all += (all.empty() ? "" : ", ") + WithoutSpaces(KernelName(item));
    }
    return Fail(Code::kInvalidArgument, "kernel '{}': expected one of {}", name, all);
  }
  return chosen;
}

// Rows of a weight that takes at least `bytes` as stored.
int64_t RowsOf(const Case& item, int64_t bytes, int64_t k) {
  const QuantView view = BenchWeight::ViewOf(item.format, kBenchRows, k);
  const int64_t made = view.data_bytes() + view.scale_bytes();
  return (bytes + made - 1) / made * kBenchRows;
}

// Twice the last-level cache, within what a benchmark may take.
int64_t StreamBytes(const LinearBenchOptions& options) {
  if (options.stream_bytes > 0) return options.stream_bytes;
  const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::clamp<int64_t>(2 * cache, int64_t{256} << 20, int64_t{1} << 30);
}

// One weight, measured over several numbers of tokens.
class LinearBench {
 public:
  LinearBench(const OpTable& ops, ThreadPool& pool, const PackedWeight& weight, const Case& item,
              const LinearProbes& probes)
      : ops_(ops), pool_(pool), weight_(weight), item_(item), probes_(probes) {
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
    LinearMeasurement result = {.kernel = KernelName(item_),
                                .threads = pool_.threads(),
                                .n = n,
                                .k = k,
                                .m = m,
                                .weight_bytes = weight_.bytes(),
                                .read = read_,
                                .peak = Peak()};
    ops_.linear(context, params);  // first touch of the output
    result.seconds = BestSeconds(pool_.threads() == 1, [&] { ops_.linear(context, params); });
    result.bytes_per_second = static_cast<double>(weight_.bytes()) / result.seconds;
    result.ops_per_second =
        2.0 * static_cast<double>(m * n) * static_cast<double>(k) / result.seconds;
    return result;
  }

 private:
  double Peak() const {
    switch (item_.activations) {
      case ActivationFormat::kInt8:
      case ActivationFormat::kRequantized:
        return probes_.int8;
      case ActivationFormat::kInt16:
        return probes_.int16;
      default:
        return probes_.bf16;
    }
  }

  const OpTable& ops_;
  ThreadPool& pool_;
  const PackedWeight& weight_;
  const Case item_;
  const LinearProbes& probes_;
  double read_ = 0;
};

// The kernels behind a table of ops: a weight knows them.
Result<const cpu::LinearKernels*> KernelsOf(const OpTable& ops, ThreadPool& pool) {
  NIBBLE_ASSIGN(const auto weight,
                MakeBenchWeight(ops, pool, kCases[0].format, kCases[0].activations, 16, 64));
  return &static_cast<const cpu::CpuPackedWeight&>(*weight).kernels();
}

Result<LinearProbes> MeasureProbes(const OpTable& ops, ThreadPool& pool) {
  NIBBLE_ASSIGN(const cpu::LinearKernels* kernels, KernelsOf(ops, pool));
  NIBBLE_ASSIGN(const cpu::LinearKernels* best, KernelsOf(CpuOps(), pool));
  LinearProbes probes = {.threads = pool.threads(),
                         .int8 = ProbeOps(pool, kernels->int8_probe),
                         .int16 = ProbeOps(pool, kernels->int16_probe),
                         .bf16 = ProbeOps(pool, kernels->bf16_probe)};
  probes.best_int8 = kernels == best ? probes.int8 : ProbeOps(pool, best->int8_probe);
  return probes;
}

Status MeasureCase(const OpTable& ops, ThreadPool& pool, const LinearBenchOptions& options,
                   const Case& item,
                   const std::function<void(const LinearMeasurement&)>& on_measurement,
                   LinearBenchReport& report) {
  for (const bool stream : {true, false}) {
    const auto belongs = [&](int64_t m) { return (m <= kStreamTokens) == stream; };
    if (std::none_of(options.tokens.begin(), options.tokens.end(), belongs)) continue;
    const int64_t n = stream ? RowsOf(item, StreamBytes(options), options.k) : options.batch_n;
    NIBBLE_ASSIGN(const auto weight,
                  MakeBenchWeight(ops, pool, item.format, item.activations, n, options.k));
    // The clock changes from second to second: what the case is compared with is measured with it.
    NIBBLE_ASSIGN(const LinearProbes probes, MeasureProbes(ops, pool));
    LinearBench bench(ops, pool, *weight, item, probes);
    for (const int64_t m : options.tokens) {
      if (!belongs(m)) continue;
      NIBBLE_ASSIGN(LinearMeasurement measurement, bench.Measure(m));
      measurement.verdicts = VerdictsOf(measurement, probes, report.variant.starts_with("avx512"),
                                        report.measurements);
      if (on_measurement) on_measurement(measurement);
      report.measurements.push_back(std::move(measurement));
    }
  }
  return {};
}

}  // namespace

Result<LinearBenchReport> BenchLinear(
    const LinearBenchOptions& options,
    const std::function<void(const LinearMeasurement&)>& on_measurement) {
  NIBBLE_ASSIGN(const OpTable* ops, CpuOpsVariant(options.variant));
  NIBBLE_ASSIGN(const std::vector<Case> cases, ChooseCases(options.kernels));
  LinearBenchReport report = {.variant = std::string(ops->variant)};
  for (const int threads : options.threads) {
    ThreadPool pool(threads);
    NIBBLE_ASSIGN(LinearProbes probes, MeasureProbes(*ops, pool));
    report.probes.push_back(probes);
    for (const Case& item : cases) {
      NIBBLE_TRY(MeasureCase(*ops, pool, options, item, on_measurement, report));
    }
  }
  return report;
}

std::string_view LinearCeilingName(LinearCeiling ceiling) {
  switch (ceiling) {
    case LinearCeiling::kNone:
      return "";
    case LinearCeiling::kRead:
      return "of read";
    case LinearCeiling::kMultiply:
      return "of peak";
    case LinearCeiling::kInt8:
      return "of int8";
    case LinearCeiling::kTimeOfOneToken:
      return "of M=1's time";
    case LinearCeiling::kOneThread:
      return "of one thread";
  }
  return "";
}

std::string FormatMeasurement(const LinearMeasurement& m) {
  std::string line = fmt::format(
      "{:16} {:6} x {:<5} t={} M={:<4} {:7.2f} GB/s ({:3.0f} % of read) {:7.1f} GOP/s ({:3.0f} % "
      "of "
      "peak)",
      m.kernel, m.n, m.k, m.threads, m.m, m.bytes_per_second / 1e9, 100 * m.read_share(),
      m.ops_per_second / 1e9, 100 * m.compute_share());
  for (const LinearVerdict& verdict : m.verdicts) {
    line += fmt::format("  {:.0f} % {}, goal {:.0f}: {}", 100 * verdict.reached,
                        LinearCeilingName(verdict.ceiling), 100 * verdict.goal,
                        verdict.met() ? "met" : "MISSED");
  }
  return line;
}

}  // namespace nibble::kernels
