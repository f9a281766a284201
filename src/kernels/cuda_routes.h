// Which GPU code serves what: from the compute capability to one of the cubins that a build holds,
// and from that cubin to the kernel of every op. Pure functions: the CUDA backend asks the
// predicates when it launches, `nibble doctor` prints the table.
#pragma once

#include <span>
#include <string_view>
#include <vector>

namespace nibble::kernels {

struct ComputeCapability {
  int major = 0;
  int minor = 0;
};

// Capabilities that a cubin's target runs on. "90a" is 9.0 alone; "120f" is its family, 12.0 and
// 12.1 (GB10); plain "80" is 8.0 and what is newer within 8.x.
bool RunsOn(std::string_view target, ComputeCapability capability);

// The target that the driver loads: of those that run on this GPU the newest, and among equal ones
// the most specific. Empty: this build has no code for it.
std::string_view CubinFor(ComputeCapability capability, std::span<const std::string_view> targets);

// "90a" is for 9.0.
ComputeCapability CapabilityOf(std::string_view target);

// The targets of this build; empty without CUDA.
std::span<const std::string_view> BuildTargets();

// What instructions there are.
constexpr bool HasWgmma(ComputeCapability c) { return c.major == 9; }
constexpr bool HasBlockScaledMma(ComputeCapability c) { return c.major == 12; }

// One row of the table. Where several rows of an op fit, the first serves.
struct KernelRoute {
  std::string_view op;
  std::string_view formats;  // of weights, or of the KV cache
  std::string_view when;     // tokens, or rows of an expert
  std::string_view kernel;   // folder of src/kernels/cuda, and what multiplies
};
std::vector<KernelRoute> RoutesOf(ComputeCapability capability);

}  // namespace nibble::kernels
