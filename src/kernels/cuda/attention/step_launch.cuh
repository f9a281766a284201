// How many CTAs share a sequence's keys, and where their results meet.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/cuda/attention/merge_step.cuh"
#include "kernels/cuda/attention/step_attention.cuh"
#include "kernels/cuda/attention/step_launch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda {

inline constexpr int64_t kMaxClusterCtas = 8;
inline constexpr int64_t kMaxClusterBlocks = 16;
inline constexpr int64_t kLargeCluster = 16;  // CTAs; more than every GPU with clusters can start

// Blocks that a token may see, whatever the length.
inline int64_t MaxStepBlocks(const AttentionProblem& p, int64_t max_keys) {
  const auto blocks_of = [](int64_t keys) { return (keys + kBlockKeys - 1) / kBlockKeys; };
  int64_t blocks = blocks_of(max_keys);
  if (p.window > 0) blocks = std::min(blocks, blocks_of(p.window - 1) + 1);
  if (p.chunk > 0)
    blocks = std::min(blocks, blocks_of(p.chunk) + (p.chunk % kBlockKeys != 0 ? 1 : 0));
  return blocks;
}

// CTAs of a cluster where clusters are best, else 1: few keys, and fewer sequences than fill the
// GPU by themselves. All should run at once, of which `resident` fit a multiprocessor.
inline int64_t StepCluster(int64_t pairs, int64_t blocks, int64_t resident) {
  const DeviceFacts& device = CurrentDevice();
  if (device.major < 9 || blocks > kMaxClusterBlocks) return 1;
  int64_t ctas = std::min<int64_t>(
      kMaxClusterCtas, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(blocks))));
  while (ctas > 2 && pairs * ctas > resident * device.multiprocessors) ctas /= 2;
  // Where most multiprocessors would have several blocks each, the other kernel, whose copies run
  // ahead, is worth its second launch, if it finds CTAs enough for a pair.
  const bool reads_much = blocks > ctas && pairs * ctas > device.multiprocessors / 2 &&
                          pairs * kMaxClusterCtas <= 2 * device.multiprocessors;
  return reads_much || pairs > device.multiprocessors ? 1 : ctas;
}

// Clusters of kLargeCluster CTAs that the GPU runs at once: the CTAs of one share a group of
// multiprocessors, which not every GPU has that large. shared: bytes of a CTA.
inline int64_t LargeClusters(const void* kernel, int shared) {
  if (CurrentDevice().major != 9) return 0;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {.x = kLargeCluster, .y = 1, .z = 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kLargeCluster);
  config.blockDim = dim3(kStepThreads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // it is an answer, and nobody's failure
  return 0;
}

// False: clusters are not best, or do not fit.
template <KvFormat kFormat, int kDimAtoms>
bool LaunchInClusters(const OpContext& context, StepProblem p, int64_t pairs, int64_t blocks) {
  using Worker = StepWorker<kFormat, kDimAtoms, true>;
  const auto kernel = StepAttentionKernel<kFormat, kDimAtoms, true>;
  int64_t cluster = StepCluster(pairs, blocks, Worker::kRowBytes <= 128 ? 2 : 1);
  if (cluster == 1) return false;
  const int64_t slices = std::max<int64_t>(1, kDimAtoms / cluster);
  const auto shared =
      static_cast<int>(sizeof(typename Worker::Shared) + blocks * (slices * 512 + 64));
  const DeviceFacts& device = CurrentDevice();
  if (shared > device.shared_memory_per_block) return false;
  // A CTA's second block takes nearly as long as its first, so that more CTAs are sooner done; eight
  // of them merge. Measured with FP8 keys of 128 dimensions, so for these alone.
  if constexpr (kFormat == KvFormat::kFp8 && kDimAtoms == 8) {
    if (cluster == kMaxClusterCtas && blocks > cluster &&
        pairs * kLargeCluster <= device.multiprocessors / 2 &&
        LargeClusters(reinterpret_cast<const void*>(kernel), shared) >= pairs)
      cluster = kLargeCluster;
  }
  p.splits = static_cast<int32_t>(cluster);
  p.slices_shift = std::countr_zero(static_cast<uint64_t>(slices));
  const int64_t ctas = pairs * cluster;
  // One token's split lets a launch start beside its linears. For a small grid of several tokens
  // this was found to be worse than to start as they end: the linear behind it pairs up CTAs on
  // multiprocessors that are free, and leaves out those that are not.
  const bool as_they_end = p.sequences > 1 && ctas <= device.multiprocessors / 2;
  const int split = as_they_end ? kSplitOfFewTokens : kSplitOfOneToken;
  AskForSplit(reinterpret_cast<const void*>(kernel), std::max(split, shared + kReservedPerCta));
  LaunchPdlCluster(kernel, dim3(static_cast<uint32_t>(ctas)), dim3(kStepThreads),
                   dim3(static_cast<uint32_t>(cluster)), shared, StreamOf(context), p);
  return true;
}

template <KvFormat kFormat, int kDimAtoms>
void LaunchStepOf(const OpContext& context, StepProblem p, int64_t max_keys) {
  const int64_t pairs = int64_t{p.sequences} * p.kv_heads;
  const int64_t blocks = MaxStepBlocks(p, max_keys);
  if (LaunchInClusters<kFormat, kDimAtoms>(context, p, pairs, blocks)) return;
  using Shared = typename StepWorker<kFormat, kDimAtoms, false>::Shared;
  const int64_t room = context.workspace_bytes / (PartialFloats(kStepRows, kDimAtoms) * 4) / pairs;
  p.units_per_tile = static_cast<int32_t>(std::min(room, blocks));
  p.splits = static_cast<int32_t>(
      std::clamp<int64_t>(2 * CurrentDevice().multiprocessors / pairs, 1, blocks));
  if (p.splits == 1 || p.units_per_tile == 0) p.splits = 1, p.units_per_tile = 0;
  const auto kernel = StepAttentionKernel<kFormat, kDimAtoms, false>;
  // More CTAs than multiprocessors: two should run on one.
  const int64_t ctas = pairs * p.splits;
  const int64_t of_two = 2 * static_cast<int64_t>(sizeof(Shared) + kReservedPerCta);
  AskForSplit(reinterpret_cast<const void*>(kernel),
              ctas > CurrentDevice().multiprocessors ? std::max<int64_t>(kSplitOfOneToken, of_two)
                                                     : kSplitOfOneToken);
  LaunchPdl(kernel, dim3(static_cast<uint32_t>(ctas)), dim3(kStepThreads), sizeof(Shared),
            StreamOf(context), p);
  if (p.splits == 1) return;
  const auto merge = MergeStepKernel<kFormat>;
  AskForSplit(reinterpret_cast<const void*>(merge), kSplitOfOneToken);
  const int64_t groups = (blocks + kBlocksPerGroup - 1) / kBlocksPerGroup;
  LaunchPdl(merge, dim3(static_cast<uint32_t>(pairs * kDimAtoms)),
            dim3(static_cast<uint32_t>(std::min<int64_t>(groups, kMergeWarps) * 32)), 0,
            StreamOf(context), p);
}

template <KvFormat kFormat>
void LaunchStep(const OpContext& context, const AttentionParams& params,
                const AttentionProblem& problem) {
  StepProblem p = {problem};
  p.tile_rows = kStepRows;
  p.rope = *params.rope;
  p.k_side = SideOf(p.rope.cache.k, p.rope.cache.k_scale);
  p.v_side = SideOf(p.rope.cache.v, p.rope.cache.v_scale);
  p.gate = params.gate;
  p.gate_stride = params.gate_stride;
  p.places = PlacesOf(params.out, params.out_layout, int64_t{p.q_heads} * p.head_dim);
  const int64_t max_keys = params.max_pages * params.cache.page_size;
  if (p.head_dim == 64) LaunchStepOf<kFormat, 4>(context, p, max_keys);
  if (p.head_dim == 128) LaunchStepOf<kFormat, 8>(context, p, max_keys);
  if (p.head_dim == 256) LaunchStepOf<kFormat, 16>(context, p, max_keys);
}

}  // namespace nibble::kernels::cuda
