#include "kernels/cuda/attention/attention.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/cache_map.h"
#include "kernels/cuda/attention/latent_attention.cuh"
#include "kernels/cuda/attention/merge_partials.cuh"
#include "kernels/cuda/attention/prefill_attention.cuh"
#include "kernels/cuda/attention/split_attention.cuh"
#include "kernels/cuda/attention/step_launch.h"
#include "kernels/cuda/attention/step_problem.cuh"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope/rope.h"
#include "kernels/cuda/rope/rope_head.cuh"

namespace nibble::kernels::cuda {
namespace {

// Sequences of more rows (tokens times heads of a KV head) go to the prefill kernel, where there is
// one: fewer do not fill its tile, and their keys are better split.
constexpr int32_t kMaxSplitRows = 64;
constexpr int64_t kMaxWorkspace = int64_t{64} << 20;
constexpr int64_t kMaxLatentWorkspace = int64_t{192} << 20;  // partial results as large as the keys
constexpr int64_t kUnitsWanted = 64;  // partial results per query head: 16,384 keys

int32_t DimAtoms(int32_t head_dim) { return (head_dim + 15) / 16; }

// Tiles of all sequences together, at most, whatever their lengths.
int64_t MaxTiles(int64_t tokens, int64_t sequences, int64_t heads_per_kv, int64_t rows) {
  const int64_t shared = (tokens * heads_per_kv + (rows - 1) * sequences) / rows;
  const int64_t per_token = (heads_per_kv + rows - 1) / rows;
  return std::min(shared, tokens * per_token);
}

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

SplitShared LayoutOf(const AttentionProblem& p, bool fp8, int32_t warps, int32_t round_keys,
                     ValueBuffer value_buffer) {
  constexpr int32_t rows = kSplitTileRows;
  SplitShared s = {};
  s.value_buffer = value_buffer;
  s.kv_pitch = SplitPitch(p.dim_atoms * (fp8 ? 16 : 32));
  s.q_pitch = SplitPitch(p.dim_atoms * 32);
  const int32_t buffer = round_keys * s.kv_pitch;
  s.v = buffer;
  s.q = value_buffer == ValueBuffer::kOverKeys ? buffer : 2 * buffer;
  s.p = s.q + rows * s.q_pitch;
  s.maxima = s.p + rows * SplitPitch(round_keys * 2);
  s.sums = s.maxima + warps * rows * 4;
  s.bytes = s.sums + warps * rows * 4 * 4;
  return s;
}

// How many half-warps of the merge kernel share a row: enough to fill the GPU.
int MergeGroups(int64_t slices) {
  const int64_t wanted = int64_t{CurrentDevice().multiprocessors} * 2 * kMergeHalfWarps / slices;
  return static_cast<int>(
      std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(wanted, 1, kMergeHalfWarps))));
}

void LaunchMerge(const OpContext& context, const AttentionProblem& p, int64_t tokens) {
  const int64_t slices = tokens * p.q_heads * SlicesOf(p);
  const int groups = MergeGroups(slices);
  const int64_t ctas = (slices * groups + kMergeHalfWarps - 1) / kMergeHalfWarps;
  LaunchPdl(MergePartialsKernel, dim3(static_cast<uint32_t>(ctas)), dim3(kMergeHalfWarps * 16), 0,
            StreamOf(context), p, groups, static_cast<int32_t>(slices));
}

template <bool kFp8, int kWarps, int kRoundKeys, int kDimAtoms, bool kNvfp4 = false>
void LaunchSplitOf(const OpContext& context, AttentionProblem p, int64_t tokens, int64_t tiles,
                   int64_t max_keys) {
  p.tile_rows = kSplitTileRows;
  const DeviceFacts& device = CurrentDevice();
  ValueBuffer value_buffer = p.k == p.v ? ValueBuffer::kKeys : ValueBuffer::kOwn;
  if (LayoutOf(p, kFp8, kWarps, kRoundKeys, value_buffer).bytes > device.shared_memory_per_block)
    value_buffer = ValueBuffer::kOverKeys;
  const SplitShared layout = LayoutOf(p, kFp8, kWarps, kRoundKeys, value_buffer);

  const int64_t pairs = tiles * p.kv_heads;
  const int64_t entry_bytes = PartialFloats(kSplitTileRows, p.dim_atoms) * 4;
  const int64_t units = context.workspace_bytes / entry_bytes / pairs;
  const int64_t blocks = max_keys / kBlockKeys + 1;
  p.units_per_tile = static_cast<int32_t>(std::min(units, blocks));
  const int64_t resident =
      std::clamp<int64_t>(device.shared_memory_per_block / (layout.bytes + 1024), 1, 16 / kWarps);
  p.splits = static_cast<int32_t>(
      std::clamp<int64_t>(device.multiprocessors * resident / pairs, 1, blocks));
  if (p.splits == 1 || p.units_per_tile == 0) {
    p.splits = 1;
    p.units_per_tile = 0;
  }
  LaunchPdl(SplitAttentionKernel<kFp8, kWarps, kRoundKeys, kDimAtoms, kNvfp4>,
            dim3(static_cast<uint32_t>(pairs * p.splits)), dim3(kWarps * 32), layout.bytes,
            StreamOf(context), p, layout);
  if (p.splits > 1) LaunchMerge(context, p, tokens);
}

int64_t SplitTiles(const AttentionProblem& p, int64_t tokens) {
  const int64_t tiles = MaxTiles(tokens, p.sequences, p.heads_per_kv, kSplitTileRows);
  if (p.prefill_rows == kNoPrefill) return tiles;
  return std::min<int64_t>(tiles, p.sequences * (p.prefill_rows / kSplitTileRows));
}

// Head dimensions that are common have kernels of their own; NVFP4 needs few, as it comes here with
// drafts and uncommon dimensions alone.
template <KvFormat kFormat>
void LaunchSplit(const OpContext& context, const AttentionProblem& p, int64_t tokens,
                 int64_t max_keys) {
  const int64_t tiles = SplitTiles(p, tokens);
  const auto launch = [&](auto kernel) { kernel(context, p, tokens, tiles, max_keys); };
  constexpr bool kFp8 = kFormat == KvFormat::kFp8;
  if constexpr (kFormat == KvFormat::kNvfp4) {
    if (p.head_dim == 128) return launch(LaunchSplitOf<false, 8, 128, 8, true>);
    if (p.dim_atoms <= 16) return launch(LaunchSplitOf<false, 8, 128, kAnyUpTo256, true>);
    return launch(LaunchSplitOf<false, 16, 64, kAnyDim, true>);
  }
  if (p.head_dim == 64) return launch(LaunchSplitOf<kFp8, 8, 128, 4>);
  if (p.head_dim == 128) return launch(LaunchSplitOf<kFp8, 8, 128, 8>);
  if (p.head_dim == 256) return launch(LaunchSplitOf < kFp8, 8, kFp8 ? 128 : 64, 16 >);
  if (p.dim_atoms <= 16) return launch(LaunchSplitOf<kFp8, 8, 128, kAnyUpTo256>);
  launch(LaunchSplitOf<kFp8, 16, 64, kAnyDim>);
}

template <KvFormat kFormat, int kDim>
void LaunchPrefillOf(const OpContext& context, const AttentionProblem& p, int64_t tokens) {
  const int64_t tiles =
      MaxTiles(tokens, p.sequences, p.heads_per_kv, PrefillShared<kFormat, kDim>::kTileRows);
  PrefillMaps maps = {};
  if constexpr (kFormat != KvFormat::kNvfp4) {
    const int32_t page_size = 1 << p.page_shift;
    maps = {CacheMap(p.k, kFormat, page_size, kDim), CacheMap(p.v, kFormat, page_size, kDim)};
  }
  LaunchPdl(PrefillAttentionKernel<kFormat, kDim>, dim3(static_cast<uint32_t>(tiles * p.kv_heads)),
            dim3(kPrefillThreads), sizeof(PrefillShared<kFormat, kDim>) + 1024, StreamOf(context),
            p, maps);
}

// Whether this GPU has a prefill kernel for the head dimension.
bool HasPrefill(const AttentionProblem& p) {
  return HasWgmma(CurrentCapability()) &&
         (p.head_dim == 64 || p.head_dim == 128 || p.head_dim == 256);
}

// False: another kernel's. Fewer heads would leave most of a tile's rows idle, and of prompts the
// partial results find no room.
template <bool kFp8>
bool LaunchLatent(const OpContext& context, AttentionProblem p, int64_t tokens, int64_t max_keys) {
  if (!HasWgmma(CurrentCapability()) || p.head_dim != kLatentDim || p.k != p.v || p.kv_heads != 1 ||
      p.heads_per_kv < 16 || reinterpret_cast<uintptr_t>(p.q) % 16 != 0)
    return false;
  p.tile_rows = kLatentRows;
  p.prefill_rows = 0;  // all sequences have such tiles
  const int64_t tiles = MaxTiles(tokens, p.sequences, p.heads_per_kv, kLatentRows);
  const int64_t entry_bytes = PartialFloats(kLatentRows, p.dim_atoms) * 4;
  const int64_t units = context.workspace_bytes / entry_bytes / tiles;
  if (units < max_keys / kGroupKeys + 1) return false;
  const int64_t blocks = (max_keys + kBlockKeys - 1) / kBlockKeys;
  p.units_per_tile = static_cast<int32_t>(std::min(units, blocks + 1));
  p.splits =
      static_cast<int32_t>(std::clamp<int64_t>(CurrentDevice().multiprocessors / tiles, 1, blocks));
  LaunchPdl(LatentAttentionKernel<kFp8>, dim3(static_cast<uint32_t>(tiles * p.splits)),
            dim3(kLatentThreads), sizeof(LatentShared) + 1024, StreamOf(context), p);
  LaunchMerge(context, p, tokens);
  return true;
}

template <KvFormat kFormat>
void Launch(const OpContext& context, AttentionProblem p, int64_t tokens, int64_t max_keys) {
  if constexpr (kFormat != KvFormat::kNvfp4)
    if (LaunchLatent<kFormat == KvFormat::kFp8>(context, p, tokens, max_keys)) return;
  const bool any_long = tokens * p.heads_per_kv > kMaxSplitRows && tokens > p.sequences;
  if (any_long && HasPrefill(p)) {
    p.prefill_rows = kMaxSplitRows;
    if (p.head_dim == 64) LaunchPrefillOf<kFormat, 64>(context, p, tokens);
    if (p.head_dim == 128) LaunchPrefillOf<kFormat, 128>(context, p, tokens);
    if (p.head_dim == 256) LaunchPrefillOf<kFormat, 256>(context, p, tokens);
    if (p.sequences == 1) return;
  }
  LaunchSplit<kFormat>(context, p, tokens, max_keys);
}

}  // namespace

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
    const SplitShared least = LayoutOf(p, false, 16, 64, ValueBuffer::kOverKeys);
    if (least.bytes <= CurrentDevice().shared_memory_per_block) break;
  }
  return 16 * p.dim_atoms;
}

size_t AttentionWorkspace(int, int64_t max_t, int32_t q_heads, int32_t head_dim) {
  const int64_t entry_bytes = PartialFloats(kSplitTileRows, DimAtoms(head_dim)) * 4;
  const int64_t most = head_dim == kLatentDim ? kMaxLatentWorkspace : kMaxWorkspace;
  return static_cast<size_t>(std::min(most, max_t * q_heads * kUnitsWanted * entry_bytes));
}

void Attention(const OpContext& context, const AttentionParams& params) {
  if (params.t == 0) return;
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
      Launch<KvFormat::kBf16>(context, p, params.t, max_keys);
      break;
    case KvFormat::kFp8:
      Launch<KvFormat::kFp8>(context, p, params.t, max_keys);
      break;
    case KvFormat::kNvfp4:
      Launch<KvFormat::kNvfp4>(context, p, params.t, max_keys);
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
