// Which kernel takes a tile of query rows, and how many CTAs share its keys.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/cache_map.h"
#include "kernels/cuda/attention/latent_attention.cuh"
#include "kernels/cuda/attention/prefill_attention.cuh"
#include "kernels/cuda/attention/split_attention.cuh"
#include "kernels/cuda/attention/tile_launch.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"

namespace nibble::kernels::cuda {

// Sequences of more rows (tokens times heads of a KV head) go to the prefill kernel, where there is
// one: fewer do not fill its tile, and their keys are better split.
inline constexpr int32_t kMaxSplitRows = 64;

// Tiles of all sequences together, at most, whatever their lengths.
inline int64_t MaxTiles(int64_t tokens, int64_t sequences, int64_t heads_per_kv, int64_t rows) {
  const int64_t shared = (tokens * heads_per_kv + (rows - 1) * sequences) / rows;
  const int64_t per_token = (heads_per_kv + rows - 1) / rows;
  return std::min(shared, tokens * per_token);
}

template <bool kFp8, int kWarps, int kRoundKeys, int kDimAtoms, bool kNvfp4 = false>
void LaunchSplitOf(const OpContext& context, AttentionProblem p, int64_t tokens, int64_t tiles,
                   int64_t max_keys) {
  p.tile_rows = kSplitTileRows;
  const DeviceFacts& device = CurrentDevice();
  ValueBuffer value_buffer = p.k == p.v ? ValueBuffer::kKeys : ValueBuffer::kOwn;
  if (SplitLayoutOf(p, kFp8, kWarps, kRoundKeys, value_buffer).bytes >
      device.shared_memory_per_block)
    value_buffer = ValueBuffer::kOverKeys;
  const SplitShared layout = SplitLayoutOf(p, kFp8, kWarps, kRoundKeys, value_buffer);

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

inline int64_t SplitTiles(const AttentionProblem& p, int64_t tokens) {
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
  } else {
    if (p.head_dim == 64) return launch(LaunchSplitOf<kFp8, 8, 128, 4>);
    if (p.head_dim == 128) return launch(LaunchSplitOf<kFp8, 8, 128, 8>);
    if (p.head_dim == 256) return launch(LaunchSplitOf < kFp8, 8, kFp8 ? 128 : 64, 16 >);
    if (p.dim_atoms <= 16) return launch(LaunchSplitOf<kFp8, 8, 128, kAnyUpTo256>);
    launch(LaunchSplitOf<kFp8, 16, 64, kAnyDim>);
  }
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
inline bool HasPrefill(const AttentionProblem& p) {
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
void LaunchTiles(const OpContext& context, AttentionProblem p, int64_t tokens, int64_t max_keys) {
  if constexpr (kFormat != KvFormat::kNvfp4)
    if (LaunchLatent < kFormat == KvFormat::kFp8 > (context, p, tokens, max_keys)) return;
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

}  // namespace nibble::kernels::cuda
