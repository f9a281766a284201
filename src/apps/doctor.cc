// nibble doctor: what this machine is, which kernels it gets and why.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "apps/load.h"
#include "base/file.h"
#include "device/cpu.h"
#include "kernels/benchmark_linear.h"
#include "kernels/benchmark_ops.h"
#include "kernels/cuda_routes.h"
#include "kernels/ops.h"

namespace nibble::apps {
namespace {

std::string FeatureList(const CpuFeatures& features) {
  std::string list;
  const auto add = [&](bool there, std::string_view name) {
    if (there) list += (list.empty() ? "" : ", ") + std::string(name);
  };
  add(features.avx2, "AVX2");
  add(features.avx512, "AVX-512 (VNNI, VBMI)");
  add(features.avx512_bf16, "AVX-512 BF16");
  add(features.amx_int8, "AMX int8");
  add(features.neon_dotprod, "NEON dotprod");
  add(features.neon_i8mm, "NEON i8mm");
  add(features.neon_bf16, "NEON BF16");
  return list.empty() ? "none that has kernels" : list;
}

// Which kernel serves which op.
void PrintRoutes(kernels::ComputeCapability capability) {
  for (const kernels::KernelRoute& route : kernels::RoutesOf(capability))
    fmt::print("  {:<25} {:<38} {:<25} {}\n", route.op, route.formats, route.when, route.kernel);
}

void PrintCuda() {
  const auto ops = kernels::CudaOps();
  if (!ops) {
    fmt::print("CUDA        {}: every model runs on the CPU\n", ops.error().message());
    return;
  }
  const Device::Memory memory = (*ops)->device->memory();
  fmt::print("CUDA        {}, {} free of {}, reads {:.0f} GB/s, loads {:.1f} GB/s\n",
             (*ops)->device->name(), FormatBytes(static_cast<double>(memory.free_bytes)),
             FormatBytes(static_cast<double>(memory.total_bytes)), (*ops)->read_bandwidth() / 1e9,
             MeasureUploadBandwidth(*(*ops)->device) / 1e9);
  fmt::print("  code      {}, of {}\n", (*ops)->variant, fmt::join(kernels::BuildTargets(), ", "));
  PrintRoutes(kernels::CapabilityOf((*ops)->variant.substr(3)));
}

// The figures by which machines are compared; about a minute.
Status PrintFigures() {
  const auto driver = ReadFile("/proc/driver/nvidia/version");
  if (driver) fmt::print("driver      {}\n", driver->substr(0, driver->find('\n')));
  const auto gpu = kernels::CudaOps();
  if (gpu) {
    const double ceiling = (*gpu)->read_bandwidth();
    fmt::print("figures     NVFP4 weights, FP8 cache, chains of dependent launches, cold\n");
    return kernels::BenchOps(**gpu, {.tokens = {1, 16, 2048}},
                             [&](const kernels::OpMeasurement& m) {
                               fmt::print("  {}\n", kernels::FormatMeasurement(m, ceiling));
                               std::fflush(stdout);
                             });
  }
  const int threads = GetCpuInfo().usable_cores;
  fmt::print("figures     linear kernels with {} thread{}\n", threads, threads == 1 ? "" : "s");
  NIBBLE_TRY(kernels::BenchLinear({.threads = {threads}, .tokens = {1, 128}},
                                  [](const kernels::LinearMeasurement& m) {
                                    fmt::print("  {}\n", kernels::FormatMeasurement(m));
                                    std::fflush(stdout);
                                  }));
  return {};
}

}  // namespace

int Doctor(bool report) {
  const CpuInfo& cpu = GetCpuInfo();
  const MemoryInfo memory = GetMemoryInfo();
  fmt::print("processor   {}\n", cpu.model);
  fmt::print("cores       {} usable of {} (affinity and cgroup limits applied)\n", cpu.usable_cores,
             cpu.logical_cores);
  fmt::print("features    {}\n", FeatureList(cpu.features));
  fmt::print("memory      {} available of {}\n",
             FormatBytes(static_cast<double>(memory.available_bytes)),
             FormatBytes(static_cast<double>(memory.total_bytes)));
  for (const int threads : {1, cpu.usable_cores}) {
    ThreadPool pool(threads);
    fmt::print("read        {:.1f} GB/s with {} thread{}\n", MeasureReadBandwidth(pool) / 1e9,
               threads, threads == 1 ? "" : "s");
    if (cpu.usable_cores == 1) break;
  }
  PrintCuda();
  fmt::print("kernels     {}\n", kernels::CpuOps().variant);
  for (const std::string_view variant :
       {"amx", "avx512", "avx512bf16", "avx2", "i8mm", "neon", "generic"}) {
    const auto ops = kernels::CpuOpsVariant(variant);
    fmt::print("  {:<10} {}\n", variant,
               !ops ? "not on this processor or not in this build"
               : (*ops)->variant == kernels::CpuOps().variant
                   ? "chosen: the fastest that this processor runs"
                   : "available");
  }
  if (!report) return 0;
  const Status printed = PrintFigures();
  return printed ? 0 : Report(printed.error());
}

}  // namespace nibble::apps
