#include "kernels/cuda/attention/attention.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/merge_partials.cuh"
#include "kernels/cuda/attention/split_attention.cuh"
#include "kernels/cuda/attention/step_launch.h"
#include "kernels/cuda/attention/step_problem.cuh"
#include "kernels/cuda/attention/tile_launch.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/turns.h"
#include "kernels/cuda/rope/rope.h"
#include "kernels/cuda/rope/rope_head.cuh"
#include "kernels/workspace.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxWorkspace = int64_t{64} << 20;
constexpr int64_t kMaxLatentWorkspace = int64_t{192} << 20;  // partial results as large as the keys
constexpr int64_t kUnitsWanted = 64;  // partial results per query head: 16,384 keys

int32_t DimAtoms(int32_t head_dim) { return (head_dim + 15) / 16; }

AttentionProblem ProblemOf(const OpContext& context, const AttentionParams& params) {
  const KvLayerView& cache = params.cache;
  const bool fp8 = cache.format == KvFormat::kFp8;
  AttentionProblem p = {};
  p.q = params.q;
  p.out = params.out;
  p.q_start = params.q_start;
  p.kv_len = params.kv_len;
  p.page_table = params.page_table;
  p.k = reinterpret_cast<const uint8_t*>(cache.k);
  p.v = reinterpret_cast<const uint8_t*>(cache.v);
  p.sinks = params.sinks;
  p.partials = reinterpret_cast<float*>(context.workspace);
  p.max_pages = params.max_pages;
  p.sequences = static_cast<int32_t>(params.sequences);
  p.q_heads = params.q_heads;
  p.kv_heads = cache.kv_heads;
  p.heads_per_kv = params.q_heads / cache.kv_heads;
  p.head_dim = cache.head_dim;
  p.dim_atoms = DimAtoms(cache.head_dim);
  p.row_bytes = static_cast<int32_t>(cache.head_dim * KvElementBytes(cache.format));
  p.page_shift = std::countr_zero(static_cast<uint32_t>(cache.page_size));
  p.window = params.window;
  p.chunk = params.chunk;
  p.prefill_rows = kNoPrefill;
  p.score_scale = params.scale * kLog2E;
  p.value_scale = 1.0f;
  if (fp8) {
    p.score_scale *= cache.k_scale * 0x1p60f;  // what q * 2^60 and E4M3 * 2^-120 leave
    p.value_scale = cache.v_scale;
  }
  if (cache.format == KvFormat::kNvfp4) {
    p.score_scale *= kNvfp4Rest;
    p.value_scale = kNvfp4Rest;
  }
  return p;
}

// How many half-warps of the merge kernel share a row: enough to fill the GPU.
int MergeGroups(int64_t slices) {
  const int64_t wanted = int64_t{CurrentDevice().multiprocessors} * 2 * kMergeHalfWarps / slices;
  return static_cast<int>(
      std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(wanted, 1, kMergeHalfWarps))));
}

}  // namespace

void LaunchMerge(const OpContext& context, const AttentionProblem& p, int64_t tokens) {
  const int64_t slices = tokens * p.q_heads * SlicesOf(p);
  const int groups = MergeGroups(slices);
  const int64_t ctas = (slices * groups + kMergeHalfWarps - 1) / kMergeHalfWarps;
  LaunchPdl(MergePartialsKernel, dim3(static_cast<uint32_t>(ctas)), dim3(kMergeHalfWarps * 16), 0,
            StreamOf(context), p, groups, static_cast<int32_t>(slices));
}

bool StepTakes(const AttentionParams& params) {
  const int32_t dh = params.cache.head_dim;
  return params.rope != nullptr && params.t == params.sequences &&
         (dh == 64 || dh == 128 || dh == 256) &&
         params.q_heads <= kStepRows * params.cache.kv_heads && HasGroupsOfFour(*params.rope) &&
         reinterpret_cast<uintptr_t>(params.out) % 4 == 0 &&
         SideOf(nullptr, params.cache.k_scale).inverse != 0.0f &&
         SideOf(nullptr, params.cache.v_scale).inverse != 0.0f;
}

int32_t MaxHeadDim() {
  AttentionProblem p = {};
  for (p.dim_atoms = DimAtoms(kMaxHeadDim); p.dim_atoms > 16; --p.dim_atoms) {
    const SplitShared least = SplitLayoutOf(p, false, 16, 64, ValueBuffer::kOverKeys);
    if (least.bytes <= CurrentDevice().shared_memory_per_block) break;
  }
  return 16 * p.dim_atoms;
}

namespace {

// By way of rows at the end of the workspace.
void AttentionThenLayOut(const OpContext& context, const AttentionParams& params) {
  const int64_t width = int64_t{params.q_heads} * params.cache.head_dim;
  const size_t bytes = Bf16RowsBytes(params.t, width);
  NIBBLE_CHECK(bytes <= context.workspace_bytes, "attention of {} tokens: workspace of {} bytes",
               params.t, context.workspace_bytes);
  OpContext rest = context;
  rest.workspace_bytes = (context.workspace_bytes - bytes) / 64 * 64;
  AttentionParams rows = params;
  rows.out = reinterpret_cast<uint16_t*>(context.workspace + rest.workspace_bytes);
  rows.out_layout = {};
  Attention(rest, rows);
  LayOutRows(rows.out, params.t, width, params.out_layout, params.out, context.stream);
}

}  // namespace

// Layouts other than rows are of up to kMaxTurnTokens tokens.
size_t AttentionWorkspace(int, int64_t max_t, int32_t q_heads, int32_t head_dim) {
  const int64_t entry_bytes = PartialFloats(kSplitTileRows, DimAtoms(head_dim)) * 4;
  const int64_t most = head_dim == kLatentDim ? kMaxLatentWorkspace : kMaxWorkspace;
  const size_t rows =
      HasWgmma(CurrentCapability())
          ? Bf16RowsBytes(std::min<int64_t>(max_t, kMaxTurnTokens), int64_t{q_heads} * head_dim) +
                64
          : 0;
  return static_cast<size_t>(std::min(most, max_t * q_heads * kUnitsWanted * entry_bytes)) + rows;
}

void Attention(const OpContext& context, const AttentionParams& params) {
  if (params.t == 0) return;
  if (!params.out_layout.rows() && !StepTakes(params)) return AttentionThenLayOut(context, params);
  AttentionProblem p = ProblemOf(context, params);
  if (StepTakes(params)) {
    switch (params.cache.format) {
      case KvFormat::kBf16:
        return LaunchStepBf16(context, params, p);
      case KvFormat::kFp8:
        return LaunchStepFp8(context, params, p);
      case KvFormat::kNvfp4:
        return LaunchStepNvfp4(context, params, p);
    }
  }
  if (params.rope != nullptr) {
    RopeAndCache(context, *params.rope);
    p.q = params.rope->q_out;
  }
  if (params.mla_rope != nullptr) MlaRopeAndCache(context, *params.mla_rope);
  const int64_t max_keys = params.max_pages * params.cache.page_size;
  switch (params.cache.format) {
    case KvFormat::kBf16:
      LaunchTilesBf16(context, p, params.t, max_keys);
      break;
    case KvFormat::kFp8:
      LaunchTilesFp8(context, p, params.t, max_keys);
      break;
    case KvFormat::kNvfp4:
      LaunchTilesNvfp4(context, p, params.t, max_keys);
      break;
  }
  if (params.gate != nullptr) {
    SigmoidGate(context, {.x = params.out,
                          .gate = params.gate,
                          .gate_stride = params.gate_stride,
                          .t = params.t,
                          .n = int64_t{params.q_heads} * params.cache.head_dim});
  }
}

}  // namespace nibble::kernels::cuda
