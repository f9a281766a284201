// The OpTable of the CUDA backend.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>

#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/fp8/fp8.h"
#include "kernels/cuda/gated_delta_net/gated_delta_net.h"
#include "kernels/cuda/gather_rows/gather_rows.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/mamba2/mamba2.h"
#include "kernels/cuda/moe/moe.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/read_bandwidth/read_bandwidth.h"
#include "kernels/cuda/rope/rope.h"
#include "kernels/cuda/sample/sample.h"
#include "kernels/cuda/w4a4/w4a4.h"
#include "kernels/cuda_routes.h"
#include "kernels/ops.h"
#include "kernels/w4a4_ops.h"

namespace nibble::kernels {
namespace {

// "sm_90a": the cubin that GPU `index` runs.
Result<std::string> CubinOf(int index) {
  ComputeCapability capability;
  cudaDeviceGetAttribute(&capability.major, cudaDevAttrComputeCapabilityMajor, index);
  cudaDeviceGetAttribute(&capability.minor, cudaDevAttrComputeCapabilityMinor, index);
  const std::string_view cubin = CubinFor(capability, BuildTargets());
  if (cubin.empty()) {
    return Fail(Code::kUnsupported,
                "GPU {} has compute capability {}.{}; this build has code for {} alone: build with "
                "-DNIBBLE_CUDA_TARGETS",
                index, capability.major, capability.minor, fmt::join(BuildTargets(), ", "));
  }
  return fmt::format("sm_{}", cubin);
}

}  // namespace

Result<const OpTable*> CudaOps(int index) {
  NIBBLE_ASSIGN(Device * device, CudaDevice(index));
  NIBBLE_ASSIGN(std::string cubin, CubinOf(index));
  static const std::string variant = std::move(cubin);
  static OpTable table = {
      .backend = "cuda",
      .variant = variant,
      .delta_chunk = cuda::GatedDeltaNetChunk(),
      .max_head_dim = cuda::MaxHeadDim(),
      .read_bandwidth = cuda::ReadBandwidth,
      .pack_weight = cuda::PackWeight,
      .packs_made_up = true,
      .linear_workspace = cuda::LinearWorkspace,
      .linear = cuda::Linear,
      .linear_pair = cuda::LinearPair,
      .activated_workspace = cuda::ActivatedWorkspace,
      .embed = cuda::Embed,
      .rms_norm = cuda::RmsNorm,
      .add = cuda::Add,
      .round = cuda::Round,
      .gather_rows = cuda::GatherRows,
      .activation = cuda::ApplyActivation,
      .sigmoid_gate = cuda::SigmoidGate,
      .prepare_experts = cuda::PrepareExperts,
      .prepare_heads = cuda::PrepareHeads,
      .moe_workspace = cuda::MoeWorkspace,
      .moe = cuda::Moe,
      .head_linear_workspace = cuda::HeadLinearWorkspace,
      .head_linear = cuda::HeadLinear,
      .rope_and_cache = cuda::RopeAndCache,
      .mla_rope_and_cache = cuda::MlaRopeAndCache,
      .attention_workspace = cuda::AttentionWorkspace,
      .attention = cuda::Attention,
      .gated_delta_net_workspace = cuda::GatedDeltaNetWorkspace,
      .gated_delta_net = cuda::GatedDeltaNet,
      .mamba2_workspace = cuda::Mamba2Workspace,
      .mamba2 = cuda::Mamba2,
      .sample_workspace = cuda::SampleWorkspace,
      .sample = cuda::Sample,
  };
  if (HasWgmma(cuda::CurrentCapability())) table.x_layout = cuda::XLayout;
  if (cuda::HasW4a4()) {
    table.linear_w4a4_workspace = cuda::LinearW4a4Workspace;
    table.linear_w4a4 = cuda::LinearW4a4;
    table.moe_w4a4 = true;
  }
  if (cuda::HasFp8()) {
    table.linear_fp8_workspace = cuda::LinearFp8Workspace;
    table.linear_fp8 = cuda::LinearFp8;
  }
  table.device = device;
  return &table;
}

Result<const OpTable*> CudaOpsWithW4a4() {
  NIBBLE_ASSIGN(const OpTable* ops, CudaOps(0));
  if (ops->linear_w4a4 == nullptr && !cuda::HasEmulatedW4a4())
    return Fail(Code::kUnsupported, "{} neither multiplies FP4 nor emulates it",
                ops->device->name());
  static const OpTable table = [&] {
    OpTable with = *ops;
    with.linear_w4a4_workspace = cuda::LinearW4a4Workspace;
    with.linear_w4a4 = cuda::LinearW4a4;
    with.moe_w4a4 = true;
    return with;
  }();
  return &table;
}

}  // namespace nibble::kernels
