// The decode step's kernel: rotation, cache write, attention and output gate of one token per
// sequence, of up to eight query heads to a KV head.
//
// Keys are the M of the score's MMAs and dimensions that of the values', queries the N of both, so
// that no row of an atom is idle. Keys come in rounds of kRoundKeys. Each warp copies and scores
// its own keys of the round; maxima and weights are exchanged through shared memory; then each warp
// sums the values of its own dimensions over all keys of the round.
//
// CTAs share a sequence's keys in one of two ways. In a cluster each sends the results of its
// blocks of keys to the CTAs that merge them, some dimensions each, through shared memory: one
// launch. Or they leave them in global memory for merge_step.cuh. Everything is summed in the order
// of attention_order.cuh, so that the bits are the same.
//
// Before the wait for the predecessor, a CTA has its first keys and values under way: earlier steps
// wrote them, and the step's own come from shared memory.
#pragma once

#include "kernels/cuda/attention/step_heads.cuh"
#include "kernels/cuda/attention/step_output.cuh"
#include "kernels/cuda/attention/step_rows.cuh"
#include "kernels/cuda/ptx/cluster.cuh"

namespace nibble::kernels::cuda {

template <KvFormat kFormat, int kDimAtoms, bool kClustered>
struct StepWorker {
  using Bytes = StepRowBytes<kFormat, kDimAtoms>;
  static constexpr int kRowBytes = Bytes::kNumbers;
  // In a cluster a CTA has hardly more than one block, which is done soonest in one round. Else two
  // CTAs should fit a multiprocessor, and copies run ahead where there is room. NVFP4 has so few
  // bytes that what a round costs beside them counts: a block at a time.
  static constexpr bool kWholeBlocks =
      kFormat == KvFormat::kNvfp4 ? kRowBytes <= 64 : kClustered && kRowBytes <= 256;
  static constexpr int kRoundKeys =
      kWholeBlocks ? 256 : (kClustered || kRowBytes <= 256 ? 128 : 64);
  static constexpr int kStages = kRowBytes <= 128 && !kClustered ? 2 : 1;
  static constexpr int kWarpKeys = kRoundKeys == 256 ? 32 : 16;
  static constexpr int kScoreWarps = kRoundKeys / kWarpKeys;  // the first ones have keys
  static constexpr int kKeyTiles = kWarpKeys / 16;
  using Rows = StepRows<kFormat, kDimAtoms, kRoundKeys, kWarpKeys>;
  static constexpr int kLeaves = kRoundKeys / kLeafKeys;
  static constexpr int kWarpsPerLeaf = kLeafKeys / kWarpKeys;
  static constexpr int kUnits = (kDimAtoms + kStepWarps - 1) / kStepWarps;  // slices of a warp

  struct Shared {
    uint8_t keys[kStages][Rows::kBufferBytes];
    uint8_t values[kStages][Rows::kBufferBytes];
    uint4 weights[kRoundKeys];  // BF16, of eight queries
    typename Rows::Scales scales;
    uint8_t queries[kStepRows * Rows::kQueryPitch];
    NewestRows<kFormat, kDimAtoms> newest;
    float maxima[kScoreWarps][kStepRows];
    float sums[kScoreWarps][4][kStepRows];  // of the keys 2 i and 2 i + 1 of every eight
    ptx::BytesBarrier blocks_came;
    uint64_t padding;
  };

  // Of the warp's slices: items, and m and l of queries 2q and 2q + 1. l of a block under way is
  // the lane's part, of keys 2 (g / 2) and the next of every eight.
  struct State {
    float o[kUnits][4];
    float m[2];
    float l[2];
  };

  const StepProblem& p;
  Shared& shared;
  Rows rows;
  int warp, lane, g, q;
  StepPlace place;
  KeyRange keys;

  __device__ __forceinline__ StepWorker(const StepProblem& problem, Shared& memory)
      : p(problem), shared(memory) {
    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    g = lane / 4;
    q = lane % 4;
  }

  // ---- Copies ----

  // 16 neighbouring keys lie in one page, so one after another in memory.
  static constexpr int kRuns = kWarpKeys / 16;
  struct Round {
    int base;
    int32_t pages[kRuns];
  };

  // Of any keys there is room for, so that nothing waits for the length.
  __device__ __forceinline__ Round RoundAt(int base) const {
    Round round = {base, {}};
    const int64_t table = place.sequence * p.max_pages;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const int64_t page = (base + warp * kWarpKeys + run * 16) >> p.page_shift;
      round.pages[run] = p.page_table[table + min(page, p.max_pages - 1)];
    }
    return round;
  }

  // This warp's keys of the round, zeros where nothing is seen. The newest is not in the cache yet.
  __device__ __forceinline__ void CopyRows(uint8_t* to, const uint8_t* cache,
                                           const Round& round) const {
    if (round.base > keys.last || warp >= kScoreWarps) return;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const int row = warp * kWarpKeys + run * 16;
      rows.CopyRun(to, row, cache, round.pages[run] * p.kv_heads + place.kv_head, p.page_shift,
                   round.base + row, {keys.first, keys.last - 1});
    }
  }

  // The step's own key or value, in its row of the round at `base`: by the warp that copied there.
  __device__ __forceinline__ void PlaceNewest(uint8_t* to, const uint8_t* row, int base) const {
    const int key = keys.last - base;
    if (key < 0 || key >= kRoundKeys || key / kWarpKeys != warp) return;
    rows.PlaceRow(to, key, row);
    __syncwarp();
  }

  // ---- Scores ----

  // Scores of unseen keys become -inf; this warp's largest of each query goes to shared memory.
  __device__ __forceinline__ void MaskAndShareMaxima(float (&s)[kKeyTiles][4], int base) const {
    float largest[2] = {MinusInfinity(), MinusInfinity()};
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = base + warp * kWarpKeys + tile * 16 + i / 2 * 8 + g;
        if (key < keys.first || key > keys.last) s[tile][i] = MinusInfinity();
        largest[i % 2] = fmaxf(largest[i % 2], s[tile][i]);
      }
    }
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        largest[e] = fmaxf(largest[e], __shfl_xor_sync(0xffffffff, largest[e], distance));
    if (g == 0) *reinterpret_cast<float2*>(&shared.maxima[warp][2 * q]) = {largest[0], largest[1]};
  }

  // ---- Softmax ----

  // m of queries 2q and 2q + 1 grows to the maxima of a leaf of the round.
  __device__ __forceinline__ void Grow(float (&m)[2], int leaf) const {
    float largest[2] = {MinusInfinity(), MinusInfinity()};
#pragma unroll
    for (int w = leaf * kWarpsPerLeaf; w < (leaf + 1) * kWarpsPerLeaf; ++w) {
      const auto x = *reinterpret_cast<const float2*>(&shared.maxima[w][2 * q]);
      largest[0] = fmaxf(largest[0], x.x);
      largest[1] = fmaxf(largest[1], x.y);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) m[e] = fmaxf(m[e], largest[e] * p.score_scale);
  }

  // Weights of this warp's keys, as BF16 for all warps; their sums over pairs of keys.
  // m: of the block before this round.
  __device__ __forceinline__ void ShareWeights(const float (&s)[kKeyTiles][4],
                                               const float (&m)[2]) const {
    float grown[2] = {m[0], m[1]};
#pragma unroll
    for (int leaf = 0; leaf < kLeaves; ++leaf)
      if (leaf <= warp / kWarpsPerLeaf) Grow(grown, leaf);
    const float reference[2] = {Reference(grown[0]), Reference(grown[1])};
    float pairs[2][2 * kKeyTiles];
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          x[e] = Exp2(__fmaf_rn(s[tile][2 * half + e], p.score_scale, -reference[e]));
          pairs[e][2 * tile + half] = x[e] + __shfl_xor_sync(0xffffffff, x[e], 4);
        }
        const int key = warp * kWarpKeys + tile * 16 + half * 8 + g;
        reinterpret_cast<uint32_t*>(&shared.weights[key])[q] =
            PackWeights<kFormat == KvFormat::kFp8>(x[0], x[1]);
      }
    if (g % 2 != 0) return;
#pragma unroll
    for (int e = 0; e < 2; ++e) shared.sums[warp][g / 2][2 * q + e] = TreeSum(pairs[e]);
  }

  __device__ __forceinline__ void LeafSums(float (&sums)[2], int leaf) const {
    float of_warps[2][kWarpsPerLeaf];
#pragma unroll
    for (int w = 0; w < kWarpsPerLeaf; ++w) {
      const auto x =
          *reinterpret_cast<const float2*>(&shared.sums[leaf * kWarpsPerLeaf + w][g / 2][2 * q]);
      of_warps[0][w] = x.x;
      of_warps[1][w] = x.y;
    }
    sums[0] = TreeSum(of_warps[0]);
    sums[1] = TreeSum(of_warps[1]);
  }

  // ---- Values ----

  // Leaf by leaf, m moving on.
  __device__ __forceinline__ void AddValues(State& block, const uint8_t* buffer) const {
    const uint32_t weights_address = ptx::SharedAddress(shared.weights + lane);
    const uint32_t address = ptx::SharedAddress(buffer);
#pragma unroll
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      float rescale[2] = {block.m[0], block.m[1]};
      float sums[2];
      Grow(block.m, leaf);
      LeafSums(sums, leaf);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        rescale[e] = Exp2(rescale[e] - Reference(block.m[e]));
        block.l[e] = __fmaf_rn(block.l[e], rescale[e], sums[e]);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) block.o[u][i] *= rescale[i % 2];
#pragma unroll
      for (int key = leaf * kLeafKeys; key < (leaf + 1) * kLeafKeys; key += 32) {
        uint32_t weights[4];
        ptx::LoadMatricesTransposed(weights, weights_address + key * 16);
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const int slice = warp + u * kStepWarps;
          if (kDimAtoms % kStepWarps != 0 && slice >= kDimAtoms) continue;
          uint32_t values[2][4];
          rows.LoadValues(values, address, shared.scales, key, slice);
#pragma unroll
          for (int i = 0; i < 2; ++i)
            ptx::MmaBf16(block.o[u], values[i], weights[2 * i], weights[2 * i + 1]);
        }
      }
    }
  }

  // ---- Results ----

  __device__ __forceinline__ static void Clear(State& state) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int i = 0; i < 4; ++i) state.o[u][i] = 0.0f;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      state.m[e] = MinusInfinity();
      state.l[e] = 0.0f;
    }
  }

  __device__ __forceinline__ static void MergeInto(State& state, const State& incoming) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const MergeFactors factors = Merge(state.m[e], incoming.m[e]);
      state.l[e] = Merged(state.l[e], incoming.l[e], factors);
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int i = e; i < 4; i += 2)
          state.o[u][i] = Merged(state.o[u][i], incoming.o[u][i], factors);
    }
  }

  // The block's l of all keys.
  __device__ __forceinline__ static void FinishBlock(State& block) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      block.l[e] += __shfl_xor_sync(0xffffffff, block.l[e], 8);
      block.l[e] += __shfl_xor_sync(0xffffffff, block.l[e], 16);
    }
  }

  __device__ __forceinline__ bool HasSlice(int u) const {
    return kDimAtoms % kStepWarps == 0 || warp + u * kStepWarps < kDimAtoms;
  }

  __device__ __forceinline__ void WritePartial(const State& state, float* entry) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
      if (HasSlice(u))
        reinterpret_cast<float4*>(entry)[(warp + u * kStepWarps) * 32 + lane] = {
            state.o[u][0], state.o[u][1], state.o[u][2], state.o[u][3]};
    if (warp != 0 || g != 0) return;
    float* ml = entry + kDimAtoms * 128 + 2 * q;
    *reinterpret_cast<float2*>(ml) = {state.m[0], state.m[1]};
    *reinterpret_cast<float2*>(ml + kStepRows) = {state.l[0], state.l[1]};
  }

  __device__ __forceinline__ void WriteOutput(const State& state) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!HasSlice(u)) continue;
      StepOutput<kFormat> output(p, place.sequence, place.kv_head, warp + u * kStepWarps);
      output.FetchGates();
      StepItem item;
#pragma unroll
      for (int i = 0; i < 4; ++i) item.o[i] = state.o[u][i];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        item.m[e] = state.m[e];
        item.l[e] = state.l[e];
      }
      output.Store(item);
    }
  }

  // ---- Clusters ----

  // CTA `rank` merges slices [rank * SlicesOfCta, ...) if there are any; items are threads.
  __device__ __forceinline__ int SlicesOfCta() const { return 1 << p.slices_shift; }
  __device__ __forceinline__ int MergingCtas() const { return kDimAtoms >> p.slices_shift; }
  // What came of a block of the sequence: (slices of this CTA, 32 lanes), then m and l of queries.
  __device__ __forceinline__ float4* BlockBox(int index) const {
    return reinterpret_cast<float4*>(&shared + 1) + index * (SlicesOfCta() * 32 + 4);
  }

  // To the merging CTAs, as the cluster's block `index` of the sequence.
  __device__ __forceinline__ void Send(const State& state, int index) {
    const int slices = SlicesOfCta();
    float4* block = BlockBox(index);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!HasSlice(u)) continue;
      const int slice = warp + u * kStepWarps;
      shared.blocks_came.template Send<4>(
          reinterpret_cast<float*>(block + (slice & (slices - 1)) * 32 + lane),
          slice >> p.slices_shift, state.o[u]);
    }
    if (warp != 0 || g >= MergingCtas()) return;
    float* ml = reinterpret_cast<float*>(block + slices * 32) + 2 * q;
    shared.blocks_came.template Send<2>(ml, g, state.m);
    shared.blocks_came.template Send<2>(ml + kStepRows, g, state.l);
  }

  // All blocks that were sent here, to the output. By the threads that have items.
  __device__ __forceinline__ void MergeBlocks(const StepOutput<kFormat>& output) {
    const int slices = SlicesOfCta();
    const int first = keys.first / kBlockKeys;
    const int count = keys.last / kBlockKeys - first + 1;
    StepItem total, group;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const float4* block = BlockBox(i);
      const float* ml = reinterpret_cast<const float*>(block + slices * 32) + 2 * q;
      if (i > 0 && (first + i) % kBlocksPerGroup == 0) {
        total.Add(group);
        group = {};
      }
      group.Add(*reinterpret_cast<const float2*>(ml),
                *reinterpret_cast<const float2*>(ml + kStepRows), block[threadIdx.x]);
    }
    total.Add(group);
    output.Store(total);
  }
};

template <KvFormat kFormat, int kDimAtoms, bool kClustered>
__global__ void __launch_bounds__(kStepThreads, 2)
    StepAttentionKernel(const __grid_constant__ StepProblem p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (kClustered) {
    __trap();  // StepCluster asks for none
    return;
  }
#endif
  using Worker = StepWorker<kFormat, kDimAtoms, kClustered>;
  constexpr int kStages = Worker::kStages;
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<typename Worker::Shared*>(memory);
  if constexpr (kClustered) {
    if (threadIdx.x == 0) shared.blocks_came.Init();
    __syncwarp();
    ptx::ArriveAtCluster();
  }
  Worker w(p, shared);
  const int pair = static_cast<int>(blockIdx.x) / p.splits;
  const int split = static_cast<int>(blockIdx.x) - pair * p.splits;
  const int sequence = pair / p.kv_heads;
  w.place = {sequence, pair - sequence * p.kv_heads, p.rope.positions[sequence],
             p.rope.slots[sequence]};
  const int kv_len = p.kv_len[sequence];
  w.keys = KeysOfStep(p, kv_len);
  const SplitPlan plan = kClustered ? SplitPlan{kBlockKeys, true} : PlanOf(p, w.keys);
  // Where all keys are seen, none of this waits for the length.
  int first_key = 0;
  if (p.window > 0 || p.chunk > 0) first_key = w.keys.first;
  const int first_unit = first_key / plan.unit_keys;
  const int last_unit = w.keys.last / plan.unit_keys;
  if (kClustered) {
    if (threadIdx.x == 0 && split < w.MergingCtas())
      shared.blocks_came.Expect((last_unit - first_unit + 1) * (w.SlicesOfCta() * 512 + 64));
  } else if (split > (plan.partial ? last_unit - first_unit : 0)) {
    return;
  }
  // Rounds of a unit in order, then the unit `splits` on. Sizes are powers of two.
  const int skipped = plan.partial ? (p.splits - 1) * plan.unit_keys : 0;
  const auto after = [&](int base) {
    const int following = base + Worker::kRoundKeys;
    return (following & (plan.unit_keys - 1)) == 0 ? following + skipped : following;
  };
  int coming = (first_unit + split) * plan.unit_keys;
  while (coming + Worker::kRoundKeys <= first_key) coming = after(coming);
  const auto advance = [&] {
    const int base = coming;
    coming = after(base);
    return base;
  };

  // Rounds under way: `round` is computed, `next` follows, `then` comes after that.
  typename Worker::Round round = w.RoundAt(advance());
  typename Worker::Round next = w.RoundAt(advance());
  [[maybe_unused]] typename Worker::Round then = next;
  if (kStages == 2) then = w.RoundAt(advance());
  w.CopyRows(shared.keys[0], p.k, round);
  ptx::CommitCopies();
  w.CopyRows(shared.values[0], p.v, round);
  ptx::CommitCopies();
  if constexpr (kStages == 2) {
    w.CopyRows(shared.keys[1], p.k, next);
    w.CopyRows(shared.values[1], p.v, next);
    ptx::CommitCopies();
  }
  const bool owns_newest = (last_unit - first_unit) % p.splits == split || !plan.partial;
  if (round.base <= w.keys.last) {
    TurnHeads<kFormat, kDimAtoms>(p, w.place, owns_newest, shared.queries,
                                  Worker::Rows::kQueryPitch, shared.newest);
  } else {
    ptx::WaitForPredecessor();
    ptx::LaunchSuccessor();
  }
  StepOutput<kFormat> output(p, sequence, w.place.kv_head,
                             kClustered ? split * w.SlicesOfCta() + w.warp : 0);
  const bool merges = kClustered && split < w.MergingCtas() && w.warp < w.SlicesOfCta();
  if (merges) output.FetchGates();
  __syncthreads();
  if constexpr (kClustered) ptx::WaitForCluster();
  const bool writes_newest = owns_newest && round.base <= w.keys.last;

  typename Worker::State block, group, total;
  Worker::Clear(block);
  Worker::Clear(group);
  Worker::Clear(total);
  for (int n = 0; round.base <= w.keys.last; ++n) {
    const int base = round.base;
    uint8_t* keys = shared.keys[kStages == 2 ? n % 2 : 0];
    uint8_t* values = shared.values[kStages == 2 ? n % 2 : 0];
    ptx::WaitForCopies<kStages == 2 ? 2 : 1>();  // the keys
    __syncwarp();
    w.PlaceNewest(keys, shared.newest.key, base);
    float s[Worker::kKeyTiles][4];
    if (w.warp < Worker::kScoreWarps) {
      if constexpr (kFormat == KvFormat::kNvfp4) {
        w.rows.ReadKeyScales(shared.scales, keys);
        __syncwarp();
      }
      w.rows.Score(s, keys, shared.scales, shared.queries);
      __syncwarp();
      w.CopyRows(keys, p.k, kStages == 2 ? then : next);
      w.MaskAndShareMaxima(s, base);
    }
    ptx::CommitCopies();
    __syncthreads();
    if constexpr (kStages == 2) {
      // The values before this round's have been summed by all warps.
      if (n > 0) w.CopyRows(shared.values[(n + 1) % 2], p.v, next);
      ptx::CommitCopies();
    }
    if (w.warp < Worker::kScoreWarps) w.ShareWeights(s, block.m);
    if constexpr (kStages == 2) {
      n == 0 ? ptx::WaitForCopies<3>() : ptx::WaitForCopies<2>();
    } else {
      ptx::WaitForCopies<1>();  // the values
    }
    __syncwarp();
    w.PlaceNewest(values, shared.newest.value, base);
    if constexpr (kFormat == KvFormat::kNvfp4)
      if (w.warp < Worker::kScoreWarps) w.rows.ReadValueScales(shared.scales, values);
    __syncthreads();
    w.AddValues(block, values);
    if constexpr (kStages == 1) {
      __syncthreads();
      w.CopyRows(values, p.v, next);
      ptx::CommitCopies();
    }
    round = next;
    next = kStages == 2 ? then : w.RoundAt(advance());
    if constexpr (kStages == 2) then = w.RoundAt(advance());

    const int end = base + Worker::kRoundKeys;
    const bool last = end > w.keys.last;
    if (end % kBlockKeys == 0 || last) {
      Worker::FinishBlock(block);
      if constexpr (kClustered) {
        w.Send(block, base / kBlockKeys - first_unit);
      } else if (plan.partial && plan.unit_keys == kBlockKeys) {
        w.WritePartial(block,
                       PartialEntry(p, sequence, w.place.kv_head, base / kBlockKeys - first_unit));
      } else {
        Worker::MergeInto(group, block);
      }
      Worker::Clear(block);
    }
    if (!kClustered && plan.unit_keys == kGroupKeys && (end % kGroupKeys == 0 || last)) {
      if (plan.partial) {
        w.WritePartial(group,
                       PartialEntry(p, sequence, w.place.kv_head, base / kGroupKeys - first_unit));
      } else {
        Worker::MergeInto(total, group);
      }
      Worker::Clear(group);
    }
  }
  if (writes_newest) WriteNewest(p, w.place, shared.newest);
  if constexpr (kClustered) {
    if (!merges) return;
    shared.blocks_came.Wait(0);
    w.MergeBlocks(output);
  } else {
    if (!plan.partial) w.WriteOutput(total);
  }
}

}  // namespace nibble::kernels::cuda
