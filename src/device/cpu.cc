#include "device/cpu.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#include "device/buffer.h"
#include "device/cgroup.h"
#include "device/cpu_places.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace nibble {
namespace {

#if defined(__x86_64__)
// Whether the operating system lets this process use tile registers: it saves them, and grants them
// to who asks (Linux 5.16 and later), threads started afterwards included.
bool RequestTiles() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kOsXsave = 1u << 27;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kOsXsave) == 0) return false;
  unsigned saved = 0;
  unsigned saved_high = 0;
  asm volatile("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;  // configuration and data
  if ((saved & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuFeatures DetectFeatures() {
  CpuFeatures features;
#if defined(__x86_64__)
  // The compiler's run time also asks the operating system which registers it saves.
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  features.avx512_bf16 = features.avx512 && __builtin_cpu_supports("avx512bf16");
  features.fast_avx512_bf16 = features.avx512_bf16 && __builtin_cpu_is("amd");
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) == 0) {
    features.avx2 = false;  // no F16C: no processor with AVX2 lacks it, an emulator may
  }
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    constexpr unsigned kTile = 1u << 24;
    constexpr unsigned kInt8 = 1u << 25;
    features.amx_int8 = (edx & kTile) != 0 && (edx & kInt8) != 0 && RequestTiles();
  }
#elif defined(__aarch64__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  constexpr unsigned long kInt8Matrix = 1ul << 13;  // HWCAP2_I8MM
  constexpr unsigned long kBf16 = 1ul << 14;        // HWCAP2_BF16
  features.neon_dotprod = (getauxval(AT_HWCAP) & kDotProduct) != 0;
  features.neon_i8mm = features.neon_dotprod && (getauxval(AT_HWCAP2) & kInt8Matrix) != 0;
  features.neon_bf16 = features.neon_dotprod && (getauxval(AT_HWCAP2) & kBf16) != 0;
#endif
  return features;
}

// The value of the first line "key : value" of /proc/cpuinfo; empty if there is none.
std::string CpuinfoValue(std::string_view key) {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? std::string() : line.substr(begin);
  }
  return {};
}

std::string DetectModel() {
  if (std::string name = CpuinfoValue("model name"); !name.empty()) return name;
  // Arm kernels name no model: "implementer 0x41, part 0xd85" is what they tell.
  const std::string implementer = CpuinfoValue("CPU implementer");
  const std::string part = CpuinfoValue("CPU part");
  if (implementer.empty()) return "unknown processor";
  return fmt::format("Arm processor (implementer {}, part {})", implementer, part);
}

CpuInfo DetectCpu() {
  CpuInfo info;
  info.model = DetectModel();
  info.logical_cores = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  const auto allowed = static_cast<int>(AllowedCpus().size());
  info.usable_cores = allowed > 0 ? allowed : info.logical_cores;
  if (const auto quota = ReadCgroupLimits().cpus) {
    // Rounded down: a thread more than the quota pays for is stopped in the middle of a step.
    const int cores = static_cast<int>(std::floor(*quota + 1e-6));
    info.usable_cores = std::clamp(cores, 1, info.usable_cores);
  }
  info.features = DetectFeatures();
  return info;
}

// Reads `bytes` as `kStreams` parallel streams; the return value keeps the loads alive.
template <int kStreams>
uint64_t ReadStreams(const std::byte* data, int64_t bytes) {
  using Vector = uint64_t __attribute__((vector_size(64)));
  constexpr int64_t kLine = 64;
  // How far the prefetch runs in front of the loads. Measured on a server Xeon: without it 6 GB/s,
  // with it 10 from one stream and 12.6 from four; a hint past the caches loses a third. On
  // another two streams read 3 % faster than one or four.
  constexpr int64_t kAhead = 2048;
  const int64_t stream = bytes / kStreams / kLine * kLine;
  Vector sums[kStreams] = {};
  for (int64_t at = 0; at < stream; at += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* line = data + s * stream + at;
      __builtin_prefetch(line + kAhead, 0, 3);
      sums[s] += *reinterpret_cast<const Vector*>(line);
    }
  }
  uint64_t sum = 0;
  for (const Vector& v : sums) sum += v[0] + v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7];
  return sum;
}

// With one thread its own CPU time, which leaves out what other processes took; else wall time.
double Now(const ThreadPool& pool) {
  timespec time = {};
  clock_gettime(pool.threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double SecondsOfPass(ThreadPool& pool, std::span<const std::byte> buffer, int streams) {
  constexpr int64_t kGrain = 4096;
  const double start = Now(pool);
  pool.ParallelFor(static_cast<int64_t>(buffer.size()), kGrain,
                   [&](int64_t begin, int64_t end, int) {
                     const std::byte* data = buffer.data() + begin;
                     volatile uint64_t sink = streams == 1   ? ReadStreams<1>(data, end - begin)
                                              : streams == 2 ? ReadStreams<2>(data, end - begin)
                                                             : ReadStreams<4>(data, end - begin);
                     (void)sink;
                   });
  return Now(pool) - start;
}

}  // namespace

const CpuInfo& GetCpuInfo() {
  static const CpuInfo info = DetectCpu();
  return info;
}

MemoryInfo GetMemoryInfo() {
  MemoryInfo memory;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (meminfo >> key >> kib >> unit) {
    if (key == "MemTotal:") memory.total_bytes = kib * 1024;
    if (key == "MemAvailable:") {
      memory.available_bytes = kib * 1024;
      break;  // later lines without a unit would end the loop anyway
    }
  }
  const CgroupLimits limits = ReadCgroupLimits();
  if (limits.memory_bytes) memory.total_bytes = std::min(memory.total_bytes, *limits.memory_bytes);
  if (limits.memory_free_bytes) {
    memory.available_bytes = std::min(memory.available_bytes, *limits.memory_free_bytes);
  }
  return memory;
}

double MeasureReadBandwidth(ThreadPool& pool, std::span<const std::byte> buffer) {
  constexpr int kPasses = 5;
  double best = 1e30;
  for (const int streams : {1, 2, 4}) {
    for (int pass = 0; pass < kPasses; ++pass) {
      best = std::min(best, SecondsOfPass(pool, buffer, streams));
    }
  }
  return static_cast<double>(buffer.size()) / best;
}

double MeasureReadBandwidth(ThreadPool& pool, int64_t buffer_bytes) {
  auto buffer = Buffer::Allocate(static_cast<size_t>(buffer_bytes));
  if (!buffer) return 0;
  // Untouched pages all map to one page of zeros: write each before reading.
  pool.ParallelFor(buffer_bytes, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t at = begin; at < end; at += 4096) buffer->data()[at] = std::byte{1};
  });
  return MeasureReadBandwidth(pool, std::span(buffer->data(), buffer->size()));
}

}  // namespace nibble
