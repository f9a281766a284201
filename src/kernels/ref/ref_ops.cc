#include "kernels/activated_linear.h"
#include "kernels/ops.h"
#include "kernels/ref/ref.h"

namespace nibble::kernels {
namespace {

size_t NoLinearWorkspace(int64_t, int64_t) { return 0; }
size_t NoHeadLinearWorkspace(int, int64_t, int64_t) { return 0; }
size_t NoAttentionWorkspace(int, int64_t, int32_t, int32_t) { return 0; }
size_t NoGatedDeltaNetWorkspace(int, const GatedDeltaNetParams&) { return 0; }
size_t NoMamba2Workspace(int, const Mamba2Params&) { return 0; }
size_t NoMoeWorkspace(int, const MoeSizes&) { return 0; }
size_t NoSampleWorkspace(int, int64_t, int64_t) { return 0; }

}  // namespace

const OpTable& RefOps() {
  static const OpTable table = {
      .device = &HostDevice(),
      .backend = "ref",
      .variant = "scalar",
      .delta_chunk = kDeltaChunk,
      .pack_weight = ref::PackWeight,
      .linear_workspace = NoLinearWorkspace,
      .linear = ref::Linear,
      .activated_workspace = GateUpBytes,
      .linear_w4a4_workspace = NoLinearWorkspace,
      .linear_w4a4 = ref::LinearW4a4,
      .linear_fp8_workspace = NoLinearWorkspace,
      .linear_fp8 = ref::LinearFp8,
      .embed = ref::Embed,
      .rms_norm = ref::RmsNorm,
      .add = ref::Add,
      .round = ref::Round,
      .gather_rows = ref::GatherRows,
      .activation = ref::Activation,
      .sigmoid_gate = ref::SigmoidGate,
      .moe_w4a4 = true,
      .moe_workspace = NoMoeWorkspace,
      .moe = ref::Moe,
      .head_linear_workspace = NoHeadLinearWorkspace,
      .head_linear = ref::HeadLinear,
      .rope_and_cache = ref::RopeAndCache,
      .mla_rope_and_cache = ref::MlaRopeAndCache,
      .attention_workspace = NoAttentionWorkspace,
      .attention = ref::Attention,
      .gated_delta_net_workspace = NoGatedDeltaNetWorkspace,
      .gated_delta_net = ref::GatedDeltaNet,
      .mamba2_workspace = NoMamba2Workspace,
      .mamba2 = ref::Mamba2,
      .sample_workspace = NoSampleWorkspace,
      .sample = ref::Sample,
  };
  return table;
}

}  // namespace nibble::kernels
