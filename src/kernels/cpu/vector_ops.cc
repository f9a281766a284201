#include "kernels/cpu/vector_ops.h"

#include "kernels/activated_linear.h"
#include "kernels/cpu/activation/activation.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/gated_delta_net/gated_delta_net.h"
#include "kernels/cpu/gather_rows/gather_rows.h"
#include "kernels/cpu/linear/linear.h"
#include "kernels/cpu/mamba2/mamba2.h"
#include "kernels/cpu/moe/moe.h"
#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/rope/rope.h"
#include "kernels/cpu/sample/sample.h"
#include "kernels/cpu/vector_kernels.h"

namespace nibble::kernels::cpu {
namespace {

// Binds a leaf table to the plain function pointers of an OpTable.
template <const VectorKernels& kKernels>
void FillFrom(OpTable* table) {
  table->rms_norm = [](const OpContext& context, const RmsNormParams& params) {
    RmsNorm(kKernels, context, params);
  };
  table->add = [](const OpContext& context, const AddParams& params) {
    Add(kKernels, context, params);
  };
  table->round = [](const OpContext& context, const RoundParams& params) {
    Round(kKernels, context, params);
  };
  table->gather_rows = GatherRows;
  table->activation = [](const OpContext& context, const ActivationParams& params) {
    Activate(kKernels, context, params);
  };
  table->sigmoid_gate = [](const OpContext& context, const SigmoidGateParams& params) {
    SigmoidGate(kKernels, context, params);
  };
  table->linear_workspace = LinearWorkspace;
  table->linear = [](const OpContext& context, const LinearParams& params) {
    const auto multiply = [](const OpContext& rest, const LinearParams& product) {
      NormedLinear(kKernels, rest, product);
    };
    if (params.activation == nullptr) return multiply(context, params);
    LinearThenActivation(context, params, multiply,
                         [](const OpContext& rest, const ActivationParams& gate_up) {
                           Activate(kKernels, rest, gate_up);
                         });
  };
  table->activated_workspace = GateUpBytes;
  table->moe_workspace = MoeWorkspace;
  table->moe = [](const OpContext& context, const MoeParams& params) {
    Moe(kKernels, context, params);
  };
  table->rope_and_cache = [](const OpContext& context, const RopeAndCacheParams& params) {
    RopeAndCache(kKernels, context, params);
  };
  table->mla_rope_and_cache = [](const OpContext& context, const MlaRopeAndCacheParams& params) {
    MlaRopeAndCache(kKernels, context, params);
  };
  table->attention_workspace = AttentionWorkspace;
  table->attention = [](const OpContext& context, const AttentionParams& params) {
    AttentionParams attention = params;
    if (params.rope != nullptr) {
      RopeAndCache(kKernels, context, *params.rope);
      attention.q = params.rope->q_out;
    }
    if (params.mla_rope != nullptr) MlaRopeAndCache(kKernels, context, *params.mla_rope);
    Attention(kKernels, context, attention);
    if (params.gate != nullptr) {
      SigmoidGate(kKernels, context,
                  {.x = params.out,
                   .gate = params.gate,
                   .gate_stride = params.gate_stride,
                   .t = params.t,
                   .n = int64_t{params.q_heads} * params.cache.head_dim});
    }
  };
  table->gated_delta_net_workspace = GatedDeltaNetWorkspace;
  table->gated_delta_net = [](const OpContext& context, const GatedDeltaNetParams& params) {
    GatedDeltaNet(kKernels, context, params);
  };
  table->mamba2_workspace = Mamba2Workspace;
  table->mamba2 = [](const OpContext& context, const Mamba2Params& params) {
    Mamba2(kKernels, context, params);
  };
  table->sample_workspace = SampleWorkspace;
  table->sample = [](const OpContext& context, const SampleParams& params) {
    Sample(kKernels, context, params);
  };
}

}  // namespace

bool FillVectorOps(std::string_view variant, OpTable* table) {
  if (variant == "generic") return FillFrom<generic::kVectorKernels>(table), true;
#if defined(__x86_64__)
  if (variant == "avx2") return FillFrom<avx2::kVectorKernels>(table), true;
  if (variant == "avx512") return FillFrom<avx512::kVectorKernels>(table), true;
  if (variant == "avx512bf16") return FillFrom<avx512bf16::kVectorKernels>(table), true;
#elif defined(__aarch64__)
  if (variant == "neon") return FillFrom<neon::kVectorKernels>(table), true;
#endif
  return false;
}

}  // namespace nibble::kernels::cpu
