// A block owns rows of down: 16 at a time, of all chosen experts, whose slices its warps take in
// turns. Its threads then add finished expert outputs by ascending expert. Nobody else writes
// there, so the order is fixed. The choice and the first weights, all of them where they fit, come
// before the wait.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/warp_stages.cuh"
#include "kernels/cuda/moe/one_choice.cuh"
#include "kernels/cuda/moe/one_slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = kOneThreads / 32;
constexpr int kStages = 2;
constexpr int kInputBytes = kSliceColumns * 2;

struct Plan {
  int32_t share = 0;   // row tiles of a block
  int32_t larger = 0;  // blocks with one more
  int32_t routed_slices = 0;
  int32_t routed_units = 0;    // slices of all routed experts, of a row tile
  int32_t units = 0;           // with those of the shared expert, the last rank
  uint32_t slice_inverse = 0;  // ⌈2^32 / routed_slices⌉
  int32_t routed_k_tiles = 0;
  int32_t shared_k_tiles = 0;
  int32_t routed_tile_bytes = 0;
  int32_t shared_tile_bytes = 0;
  int32_t routed_scales_at = 0;  // bytes from a weight's begin to its row scales
  int32_t shared_scales_at = 0;
  int32_t ranks = 0;
  // Shared memory, in bytes from its begin; slices with their inputs come first.
  uint32_t partial_at = 0;        // (tiles, units, 16)
  uint32_t scales_at = 0;         // (tiles, ranks, 16)
  uint32_t biases_at = 0;         // the same, where experts may have some
  uint32_t expert_biases_at = 0;  // (E) pointers
  uint32_t terms_at = 0;          // (top_k)
  uint32_t barriers_at = 0;       // (warps, stages)
  uint32_t choice_at = 0;
};

struct Args {
  OneRouting routing;
  const std::byte* const* down = nullptr;  // FewParams, as what follows
  const std::byte* shared_data = nullptr;  // of the shared expert's down
  const uint16_t* h = nullptr;
  uint16_t* out = nullptr;
  float* out_f32 = nullptr;
  const float* shared_logits = nullptr;
  Plan plan;
  int32_t h_stride = 0;
  int32_t f = 0;
  int32_t shared_f = 0;
  float scale = 1.0f;  // Routing, as what follows
  RouterScore score = RouterScore::kSoftmax;
  bool renormalize = true;
  bool add = false;                 // to out
  const Expert* experts = nullptr;  // where they may have biases
  const float* shared_bias = nullptr;
};

// Of the sum over experts.
struct Term {
  int32_t offset;  // of the expert's outputs, in floats
  float weight;
};

// Walks the slices of the block's row tiles that one warp takes.
struct Cursor {
  int tile;
  int unit;  // of the tile

  __device__ __forceinline__ void Settle(const Plan& plan) {
#pragma unroll 1
    while (unit >= plan.units) unit -= plan.units, ++tile;
  }
};

// Of a unit of a row tile.
struct Place {
  int rank;
  int slice;

  __device__ __forceinline__ Place(const Plan& plan, int unit, int top_k) {
    rank = plan.routed_slices == 1 ? unit : static_cast<int>(__umulhi(unit, plan.slice_inverse));
    if (unit >= plan.routed_units) rank = top_k;
    slice = unit - rank * plan.routed_slices;
  }
};

// The terms of the sum, by ascending expert. By one warp; stride: floats from one rank's outputs to
// the next.
__device__ __forceinline__ void FindTerms(const Args& p, const OneChoice& choice, int stride,
                                          Term* terms) {
  const int lane = threadIdx.x % 32, top_k = p.routing.top_k;
  const bool chosen = lane < top_k;
  const OneChoice::Rank mine = choice.ranks[chosen ? lane : 0];
  Scoring score = {p.score == RouterScore::kSoftmax};
  if (score.softmax) {
    score.largest = __shfl_sync(kAllLanes, mine.logit, 0);
    if (!p.renormalize) {
      float sum = 0.0f;
#pragma unroll 1
      for (int e = lane; e < p.routing.experts; e += 32)
        sum += expf(__ldcg(p.routing.logits + e) - score.largest);
      score.inverse_sum = 1.0f / WarpSum(sum);
    }
  }
  const float value = chosen ? score(mine.logit) : 0.0f;
  const float sum = WarpSum(value) + 1e-20f;
  const float factor = p.renormalize ? p.scale / sum : p.scale;
  int place = 0;
#pragma unroll 1
  for (int other = 0; other < top_k; ++other) place += choice.ranks[other].expert < mine.expert;
  const bool evenly = p.routing.even_keys != nullptr;
  if (chosen)
    terms[place] = {lane * stride, evenly ? p.scale / static_cast<float>(top_k) : value * factor};
}

template <Formats kFormats>
__global__ void __launch_bounds__(kOneThreads, 2) OneDownKernel(const __grid_constant__ Args p) {
  extern __shared__ __align__(16) std::byte memory[];
  const Plan& plan = p.plan;
  constexpr int kSliceBytes = kSliceBytesOf<kFormats>;
  constexpr int kStageBytes = kSliceBytes + kInputBytes;
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = threadIdx.x % 32, block = blockIdx.x, top_k = p.routing.top_k;
  auto& choice = *reinterpret_cast<OneChoice*>(memory + plan.choice_at);
  auto* const partial = reinterpret_cast<float*>(memory + plan.partial_at);
  auto* const scales = reinterpret_cast<float*>(memory + plan.scales_at);
  auto* const biases = reinterpret_cast<float*>(memory + plan.biases_at);
  auto* const terms = reinterpret_cast<Term*>(memory + plan.terms_at);
  const int first_tile = block * plan.share + min(block, plan.larger);
  const int tiles = plan.share + (block < plan.larger ? 1 : 0);
  if (tiles == 0) return;
  const int expert = ExpertOfThread(p.routing);
  const bool has_expert = expert < p.routing.experts;
  const std::byte* const data = has_expert ? p.down[expert] : nullptr;
  // Of the experts that will be chosen: a load behind weights would come late.
  auto* const expert_biases = reinterpret_cast<const float**>(memory + plan.expert_biases_at);
  const bool biased = p.experts != nullptr;
  const float* const own_bias = biased && has_expert ? p.experts[expert].down_bias : nullptr;
  if (threadIdx.x == 0) choice.ranks[top_k] = {p.shared_data};
  Cursor ahead = {0, warp};
  ahead.Settle(plan);
  Cursor now = ahead;
  const WarpStages<kOnlyFormat<kFormats>, kStages> weights(
      reinterpret_cast<uint64_t*>(memory + plan.barriers_at) + warp * kStages, lane);
  // Written by nobody since the router's launch; past L1, as nothing was waited for. Before any
  // weight is asked for: what comes behind them holds up its warp wherever that waits for a load.
  uint16_t before = p.add && static_cast<int>(threadIdx.x) < tiles * kTileRows
                        ? __ldcg(p.out + first_tile * kTileRows + threadIdx.x)
                        : 0;
  const float shared_logit = p.shared_logits != nullptr ? __ldcg(p.shared_logits) : 0.0f;
  // The logits are there before the wait: few_tokens.h.
  const float logit = has_expert ? __ldcg(p.routing.logits + expert) : 0.0f;
  const int even_rank = EvenRank(p.routing, expert);
  if (biased && has_expert) expert_biases[expert] = own_bias;
  Choose(p.routing, logit, data, even_rank, choice);

  const uint32_t ring = ptx::SharedAddress(memory);
  const auto copy_weights = [&](const Cursor& at, int stage) {
    const Place place(plan, at.unit, top_k);
    const bool shared = place.rank == top_k;
    const int tile_bytes = shared ? plan.shared_tile_bytes : plan.routed_tile_bytes;
    const int k_tiles = shared ? plan.shared_k_tiles : plan.routed_k_tiles;
    weights.Request(stage, ring + (stage * kWarps + warp) * kStageBytes,
                    choice.ranks[place.rank].data + int64_t{first_tile + at.tile} * tile_bytes +
                        place.slice * kSliceBytes,
                    min(k_tiles - place.slice * kSliceTiles, kSliceTiles), lane);
  };
  // Zeros where the slice is short.
  const auto copy_input = [&](const Cursor& at, int stage) {
    const Place place(plan, at.unit, top_k);
    const int f = place.rank == top_k ? p.shared_f : p.f;
    const int column = place.slice * kSliceColumns + lane * 8;
    const uint16_t* const h = p.h + place.rank * p.h_stride + column;
    std::byte* const to = memory + (stage * kWarps + warp) * kStageBytes + kSliceBytes + lane * 16;
    ptx::CopyAsync16OrZero(to, h, column < RoundUp(f, kTileColumns));
  };
  const auto step = [&](Cursor& at) {
    at.unit += kWarps;
    at.Settle(plan);
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (ahead.tile < tiles) {
      copy_weights(ahead, s);
      step(ahead);
    }
    ptx::CommitCopies();
  }
  // Four rows of an expert a thread, by copies, for the same reason.
  const int scaled = threadIdx.x / 4, first_row = threadIdx.x % 4 * 4;
  if (scaled < plan.ranks) {
    const int scales_at = scaled == top_k ? plan.shared_scales_at : plan.routed_scales_at;
    const auto* const from = reinterpret_cast<const float*>(choice.ranks[scaled].data + scales_at) +
                             first_tile * kTileRows + first_row;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile)
      ptx::CopyAsync16(scales + (tile * plan.ranks + scaled) * kTileRows + first_row,
                       from + tile * kTileRows);
  }
  const int row = threadIdx.x % kTileRows, of_threads = threadIdx.x / kTileRows;
  if (biased) {
#pragma unroll 1
    for (int rank = of_threads; rank < plan.ranks; rank += kOneThreads / kTileRows) {
      const float* const bias =
          rank == top_k ? p.shared_bias : expert_biases[choice.ranks[rank].expert];
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile)
        CopyBias(biases + (tile * plan.ranks + rank) * kTileRows + row, bias,
                 (first_tile + tile) * kTileRows + row);
    }
  }
  if (warp == 0) FindTerms(p, choice, plan.routed_slices * kTileRows, terms);
  const float shared_weight = p.shared_logits != nullptr ? Sigmoid(shared_logit) : 1.0f;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  Cursor at = now;
#pragma unroll
  for (int s = 0; s < kStages; ++s)
    if (at.tile < tiles) {
      copy_input(at, s);
      step(at);
    }
  ptx::CommitCopies();

  // Two slices at a time.
  const std::byte* const mine = memory + warp * kStageBytes;
  constexpr int kNext = kWarps * kStageBytes;  // bytes to the warp's other stage
  const auto input = [](const std::byte* stage) {
    return reinterpret_cast<const uint16_t*>(stage + kSliceBytes);
  };
  uint32_t parity = 0;
#pragma unroll 1
  while (now.tile < tiles) {
    Cursor next = now;
    step(next);
    ptx::WaitForCopies<0>();
    weights.template Wait<0>(0, parity);
    if (next.tile < tiles) weights.template Wait<0>(1, parity);
    parity ^= 1;
    float* const to = partial + (now.tile * plan.units + now.unit) * kTileRows;
    if (next.tile < tiles) {
      const OneSlice<kFormats> slices[2] = {{mine, lane}, {mine + kNext, lane}};
      float2 sums[2];
      MultiplySlices<kFormats, 2>(slices, {input(mine), input(mine + kNext)}, lane, sums);
      StoreOneSum(to, sums[0], lane);
      StoreOneSum(partial + (next.tile * plan.units + next.unit) * kTileRows, sums[1], lane);
      step(next);
    } else {
      const OneSlice<kFormats> slices[1] = {{mine, lane}};
      float2 sums[1];
      MultiplySlices<kFormats, 1>(slices, {input(mine)}, lane, sums);
      StoreOneSum(to, sums[0], lane);
    }
    now = next;
    weights.Free();
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      if (ahead.tile >= tiles) break;
      copy_weights(ahead, s);
      copy_input(ahead, s);
      step(ahead);
    }
    ptx::CommitCopies();
  }
  __syncthreads();
  // Finished outputs of experts, in place of the sums of their first slices.
#pragma unroll 1
  for (int rank = of_threads; rank < plan.ranks; rank += kOneThreads / kTileRows) {
    const int slices = rank == top_k ? plan.units - plan.routed_units : plan.routed_slices;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      float* const sums =
          partial + (tile * plan.units + rank * plan.routed_slices) * kTileRows + row;
      const int at = (tile * plan.ranks + rank) * kTileRows + row;
      RowScale scale = {scales[at]};
      if (biased) scale.bias = biases[at];
      *sums = scale.Apply(AddSlices(sums, slices, kTileRows));
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int tile = of_threads; tile < tiles; tile += kOneThreads / kTileRows) {
    const int n = (first_tile + tile) * kTileRows + row;
    const float* const outputs = partial + tile * plan.units * kTileRows + row;
    float y = 0.0f;
#pragma unroll 8
    for (int j = 0; j < top_k; ++j) y = __fmaf_rn(terms[j].weight, outputs[terms[j].offset], y);
    if (plan.ranks > top_k) y = __fmaf_rn(shared_weight, outputs[plan.routed_units * kTileRows], y);
    if (p.out_f32 != nullptr) {
      p.out_f32[n] = y;
    } else {
      if (tile > of_threads && p.add) before = p.out[n];
      const float sum = p.add ? ptx::FirstBf16(before) + ptx::RoundBf16(y) : y;
      p.out[n] = static_cast<uint16_t>(ptx::PackBf16(sum, 0.0f));
    }
  }
}

// Returns the bytes of shared memory.
uint32_t MakePlan(const FewParams& p, const FewSets& sets, Plan* made) {
  const int blocks = CurrentDevice().multiprocessors, tiles = p.d / kTileRows;
  Plan& plan = *made;
  plan.share = tiles / blocks;
  plan.larger = tiles % blocks;
  plan.routed_slices = sets.down.slices;
  plan.routed_units = p.routing.top_k * plan.routed_slices;
  plan.units = plan.routed_units + (p.shared_f > 0 ? sets.shared_down.slices : 0);
  plan.slice_inverse = static_cast<uint32_t>((uint64_t{1} << 32) / plan.routed_slices + 1);
  plan.routed_k_tiles = sets.down.like.k_tiles;
  plan.shared_k_tiles = sets.shared_down.like.k_tiles;
  plan.routed_tile_bytes = sets.down.tile_bytes;
  plan.shared_tile_bytes = sets.shared_down.tile_bytes;
  plan.routed_scales_at = tiles * plan.routed_tile_bytes;
  plan.shared_scales_at = tiles * plan.shared_tile_bytes;
  plan.ranks = p.routing.top_k + (p.shared_f > 0 ? 1 : 0);
  const int most_tiles = plan.share + (plan.larger > 0 ? 1 : 0);
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  take(int64_t{std::min(most_tiles * plan.units, kWarps * kStages)} *
       (sets.down.slice_bytes + kInputBytes));
  plan.partial_at = take(int64_t{4} * most_tiles * plan.units * kTileRows);
  const int64_t scale_bytes = int64_t{sizeof(float)} * most_tiles * plan.ranks * kTileRows;
  plan.scales_at = take(scale_bytes);
  plan.biases_at = take(p.biased ? scale_bytes : 0);
  plan.expert_biases_at = take(p.biased ? p.routing.experts * int64_t{sizeof(float*)} : 0);
  plan.terms_at = take(int64_t{sizeof(Term)} * p.routing.top_k);
  plan.barriers_at = take(int64_t{sizeof(uint64_t)} * kWarps * kStages);
  plan.choice_at = take(OneChoice::Bytes(p.routing.experts));
  return used;
}

}  // namespace

bool OneDownFits(const FewParams& p, const FewSets& sets) {
  Plan ignored;
  return MakePlan(p, sets, &ignored) <=
         static_cast<uint32_t>(CurrentDevice().shared_memory_per_block);
}

void OneDown(const OpContext& context, const FewParams& p, const FewSets& sets) {
  const auto kernel = FormatsOf(sets.down) == Formats::kNvfp4 ? OneDownKernel<Formats::kNvfp4>
                                                              : OneDownKernel<Formats::kMxfp4>;
  Args args = {.routing = OneRoutingOf(p),
               .down = p.down,
               .shared_data = p.shared.down.data,
               .h = p.h,
               .out = p.out,
               .out_f32 = p.out_f32,
               .shared_logits = p.shared_logits,
               .h_stride = static_cast<int32_t>(p.h_stride),
               .f = p.f,
               .shared_f = p.shared_f,
               .scale = p.routing.scale,
               .score = p.routing.score,
               .renormalize = p.routing.renormalize,
               .add = p.add,
               .experts = p.biased ? p.experts : nullptr,
               .shared_bias = p.shared.down_bias};
  const uint32_t shared_bytes = MakePlan(p, sets, &args.plan);
  ShareMultiprocessor(kernel, shared_bytes);
  LaunchPdl(kernel, static_cast<unsigned>(CurrentDevice().multiprocessors), kOneThreads,
            shared_bytes, StreamOf(context), args);
}

}  // namespace nibble::kernels::cuda::moe
