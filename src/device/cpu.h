// What this machine is: processor, instruction sets, usable cores, memory. Facts only; read once,
// at start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/thread_pool.h"

namespace nibble {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, VL, DQ, VNNI, VBMI and VBMI2
  bool avx512_bf16 = false;
  bool fast_avx512_bf16 = false;  // vdpbf16ps outruns two FP32 multiply-adds (AMD's, not Intel's)
  bool amx_int8 = false;
  bool neon_dotprod = false;
  bool neon_i8mm = false;
  bool neon_bf16 = false;
};

struct CpuInfo {
  std::string model;      // "AMD EPYC 9755 128-Core Processor"
  int logical_cores = 1;  // of the machine
  int usable_cores = 1;   // affinity mask and cgroup quota applied: the default of --threads
  CpuFeatures features;
};

const CpuInfo& GetCpuInfo();

struct MemoryInfo {
  int64_t total_bytes = 0;  // of the machine, or of the cgroup if that is less
  int64_t available_bytes =
      0;  // what can be allocated now without swapping, page cache counted as free
};

MemoryInfo GetMemoryInfo();

// Read bandwidth in bytes per second over a buffer larger than the caches: the ceiling of decoding.
// The best of several passes with one, two and four streams per thread; 0 when the buffer cannot be
// allocated. Two buffers of one machine can differ by half (their physical pages decide), so a
// kernel's rate is compared with the probe over the very buffer that it reads: the second form,
// whose bytes must be 64-byte aligned.
double MeasureReadBandwidth(ThreadPool& pool, int64_t buffer_bytes = int64_t{1} << 29);
double MeasureReadBandwidth(ThreadPool& pool, std::span<const std::byte> buffer);

}  // namespace nibble
