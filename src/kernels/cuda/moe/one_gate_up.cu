// An item is 16 outputs of one expert: a gate tile and the up tile of the same rows. Every block
// has a contiguous share of the items of all chosen experts, whose slices its warps take in turns;
// all sums of slices wait in shared memory until the end.
#include <algorithm>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/one_choice.cuh"
#include "kernels/cuda/moe/one_slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = kOneThreads / 32;
constexpr int kStages = 2;
// A thread finishes one output.
constexpr int kMostItems = kOneThreads / kTileRows;

struct Plan {
  int32_t share = 0;   // items of a block
  int32_t larger = 0;  // blocks with one more
  int32_t slices = 0;  // of gate, and of up
  int32_t units = 0;   // slices of an item
  int32_t k_tiles = 0;
  int32_t tile_bytes = 0;
  int32_t routed_tiles = 0;  // items of an expert
  int32_t routed_up = 0;     // bytes from a gate tile to its up tile
  int32_t shared_up = 0;
  int32_t routed_scales_at = 0;  // bytes from a weight's begin to its row scales
  int32_t shared_scales_at = 0;
  // Shared memory, in bytes from its begin; the ring comes first.
  uint32_t partial_at = 0;        // (items, units, 16)
  uint32_t scales_at = 0;         // (gate and up, outputs of the block)
  uint32_t biases_at = 0;         // the same, where experts may have some
  uint32_t expert_biases_at = 0;  // (E) pointers to gate's
  uint32_t x_at = 0;
  uint32_t choice_at = 0;
};

struct Args {
  OneRouting routing;
  const std::byte* const* gate_up = nullptr;  // FewParams, as what follows
  const std::byte* shared_data = nullptr;     // of the shared expert's gate
  const uint16_t* x = nullptr;
  uint16_t* h = nullptr;
  int32_t h_stride = 0;
  int32_t d = 0;
  int32_t f = 0;
  int32_t shared_f = 0;
  Plan plan;
  Activation activation;
  const Expert* experts = nullptr;  // where they may have biases
  const float* shared_gate_bias = nullptr;
  const float* shared_up_bias = nullptr;
};

// Walks the slices of the block's share that one warp takes. The shared expert is the last rank.
struct Cursor {
  int unit;  // of the share
  int rank;
  int tile;     // of the expert
  int of_item;  // unit of the item

  __device__ __forceinline__ void Settle(const Plan& plan, int top_k) {
#pragma unroll 1
    while (of_item >= plan.units) of_item -= plan.units, ++tile;
#pragma unroll 1
    while (tile >= plan.routed_tiles && rank < top_k) tile -= plan.routed_tiles, ++rank;
  }
};

template <Formats kFormats>
__global__ void __launch_bounds__(kOneThreads, 2) OneGateUpKernel(const __grid_constant__ Args p) {
  extern __shared__ __align__(16) std::byte memory[];
  const Plan& plan = p.plan;
  constexpr int kSliceBytes = kSliceBytesOf<kFormats>;
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = threadIdx.x % 32, block = blockIdx.x, top_k = p.routing.top_k;
  auto& choice = *reinterpret_cast<OneChoice*>(memory + plan.choice_at);
  auto* const x = reinterpret_cast<uint16_t*>(memory + plan.x_at);
  auto* const partial = reinterpret_cast<float*>(memory + plan.partial_at);
  const int expert = ExpertOfThread(p.routing);
  const bool has_expert = expert < p.routing.experts;
  const std::byte* const data = has_expert ? p.gate_up[expert] : nullptr;
  const int even_rank = EvenRank(p.routing, expert);
  const int first_item = block * plan.share + min(block, plan.larger);
  const int items = plan.share + (block < plan.larger ? 1 : 0);
  const int units = items * plan.units;
  // Of the experts that will be chosen: a load behind weights would come late.
  auto* const expert_biases = reinterpret_cast<const float**>(memory + plan.expert_biases_at);
  if (p.experts != nullptr && has_expert) expert_biases[expert] = p.experts[expert].gate_bias;
  Cursor ahead = {warp, 0, first_item, warp};
  ahead.Settle(plan, top_k);
  // The output that this thread finishes.
  Cursor output = {0, 0, first_item + static_cast<int>(threadIdx.x) / kTileRows, 0};
  output.Settle(plan, top_k);
  const bool finishes = static_cast<int>(threadIdx.x) < items * kTileRows;
  const int row = threadIdx.x % kTileRows, n = output.tile * kTileRows + row;
  const bool gated = plan.units > plan.slices;
  if (threadIdx.x == 0) choice.ranks[top_k] = {p.shared_data};
  const uint32_t ring = ptx::SharedAddress(memory) + warp * kStages * kSliceBytes;
  float* const scales = reinterpret_cast<float*>(memory + plan.scales_at) + threadIdx.x;
  float* const biases = reinterpret_cast<float*>(memory + plan.biases_at) + threadIdx.x;
  const float* const sums = partial + threadIdx.x / kTileRows * plan.units * kTileRows + row;

  ptx::WaitForPredecessor();
  // After the wait: few_tokens.h.
  ptx::LaunchSuccessor();
  // Zeros behind D.
#pragma unroll 1
  for (int i = threadIdx.x * 8; i < plan.slices * kSliceColumns; i += kOneThreads * 8)
    ptx::CopyAsync16OrZero(x + i, p.x + i, i < p.d);
  ptx::CommitCopies();
  Choose(p.routing, has_expert ? __ldcg(p.routing.logits + expert) : 0.0f, data, even_rank, choice);

  const auto fill = [&](int stage) {
    if (ahead.unit < units) {
      const bool up = ahead.of_item >= plan.slices;
      const int slice = up ? ahead.of_item - plan.slices : ahead.of_item;
      const int up_bytes = ahead.rank == top_k ? plan.shared_up : plan.routed_up;
      const std::byte* const from = choice.ranks[ahead.rank].data +
                                    (ahead.tile * plan.tile_bytes + (up ? up_bytes : 0)) +
                                    slice * kSliceBytes;
      CopySliceByLanes<kOnlyFormat<kFormats>>(ring + stage * kSliceBytes, from,
                                              min(plan.k_tiles - slice * kSliceTiles, kSliceTiles),
                                              lane);
      ahead.unit += kWarps, ahead.of_item += kWarps;
      ahead.Settle(plan, top_k);
    }
    ptx::CommitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) fill(s);
  // Of two neighbours; a copy does not hold up the warp, as a load would.
  if (finishes && threadIdx.x % 2 == 0) {
    const OneChoice::Rank& of = choice.ranks[output.rank];
    const bool shared = output.rank == top_k;
    const auto* const row_scales = reinterpret_cast<const float*>(
        of.data + (shared ? plan.shared_scales_at : plan.routed_scales_at));
    ptx::CopyAsync8(scales, row_scales + n);
    if (gated) ptx::CopyAsync8(scales + kOneThreads, row_scales + (shared ? p.shared_f : p.f) + n);
  }
  if (finishes && p.experts != nullptr) {
    const bool shared = output.rank == top_k;
    const float* const gate =
        shared ? p.shared_gate_bias : expert_biases[choice.ranks[output.rank].expert];
    const float* const up = shared ? p.shared_up_bias : gate == nullptr ? nullptr : gate + p.f;
    CopyBias(biases, gate, n);
    if (gated) CopyBias(biases + kOneThreads, up, n);
  }
  ptx::CommitCopies();
  ptx::WaitForCopies<kStages + 1>();
  __syncthreads();  // x is there

  int stage = 0, of_item = warp;
#pragma unroll 1
  for (int unit = warp; unit < units; unit += kWarps, of_item += kWarps) {
#pragma unroll 1
    while (of_item >= plan.units) of_item -= plan.units;
    const int slice = of_item >= plan.slices ? of_item - plan.slices : of_item;
    if (unit == warp) {
      ptx::WaitForCopies<kStages>();
    } else {
      ptx::WaitForCopies<kStages - 1>();
    }
    __syncwarp();
    const OneSlice<kFormats> weights[1] = {{memory + (warp * kStages + stage) * kSliceBytes, lane}};
    __syncwarp();
    fill(stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    float2 sum[1];
    MultiplySlices<kFormats, 1>(weights, {x + slice * kSliceColumns}, lane, sum);
    StoreOneSum(partial + unit * kTileRows, sum[0], lane);
  }
  ptx::WaitForCopies<0>();
  __syncthreads();
  if (finishes) {
    RowScale gate = {scales[0]}, up = {};
    if (gated) up.scale = scales[kOneThreads];
    if (p.experts != nullptr) {
      gate.bias = biases[0];
      if (gated) up.bias = biases[kOneThreads];
    }
    const float gate_sum = gate.Apply(AddSlices(sums, plan.slices, kTileRows));
    float up_sum = 0.0f;
    if (gated) up_sum = up.Apply(AddSlices(sums + plan.slices * kTileRows, plan.slices, kTileRows));
    const float value = Activate(p.activation, ptx::RoundBf16(gate_sum), ptx::RoundBf16(up_sum));
    uint16_t* const h = p.h + output.rank * p.h_stride + n;
    *h = static_cast<uint16_t>(ptx::PackBf16(value, 0.0f));
    // What FC2 reads beside the last tile.
    const int f = output.rank == top_k ? p.shared_f : p.f;
    if (n - row + kTileRows == f)
#pragma unroll 1
      for (int m = n + kTileRows; m < RoundUp(f, kTileColumns); m += kTileRows) h[m - n] = 0;
  }
}

// Bytes of shared memory; 0 where there is no plan.
uint32_t MakePlan(const FewParams& p, const WeightSet& set, Plan* plan) {
  const int blocks = CurrentDevice().multiprocessors, parts = p.activation.gated() ? 2 : 1;
  plan->routed_tiles = p.f / kTileRows;
  const int shared_tiles = p.shared_f / kTileRows;
  const int items = p.routing.top_k * plan->routed_tiles + shared_tiles;
  plan->share = items / blocks;
  plan->larger = items % blocks;
  plan->slices = set.slices;
  plan->units = set.slices * parts;
  plan->k_tiles = set.like.k_tiles;
  plan->tile_bytes = set.tile_bytes;
  plan->routed_up = plan->routed_tiles * set.tile_bytes;
  plan->shared_up = shared_tiles * set.tile_bytes;
  plan->routed_scales_at = parts * plan->routed_tiles * set.tile_bytes;
  plan->shared_scales_at = parts * shared_tiles * set.tile_bytes;
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  take(int64_t{kWarps} * kStages * set.slice_bytes);
  plan->partial_at = take(int64_t{4} * (plan->share + 1) * plan->units * kTileRows);
  plan->scales_at = take(2 * kOneThreads * int64_t{sizeof(float)});
  plan->biases_at = take(p.biased ? 2 * kOneThreads * int64_t{sizeof(float)} : 0);
  plan->expert_biases_at = take(p.biased ? p.routing.experts * int64_t{sizeof(float*)} : 0);
  plan->x_at = take(int64_t{2} * plan->slices * kSliceColumns);
  plan->choice_at = take(OneChoice::Bytes(p.routing.experts));
  const bool fits = plan->share < kMostItems &&
                    used <= static_cast<uint32_t>(CurrentDevice().shared_memory_per_block);
  return fits ? used : 0;
}

}  // namespace

bool OneTakes(const FewParams& p, const FewSets& sets) {
  const bool by_logit = p.routing.choice_bias == nullptr;
  for (const WeightSet* set : {&sets.gate_up, &sets.down, &sets.shared_gate_up, &sets.shared_down})
    if (!set->scales_follow) return false;
  Plan ignored;
  return p.t == 1 && sets.all_held && p.routing.experts <= kOneExperts &&
         p.routing.top_k <= kOneTopK && p.routing.groups == 1 &&
         (by_logit || p.routing.score == RouterScore::kSigmoid) &&
         MakePlan(p, sets.gate_up, &ignored) > 0 && OneDownFits(p, sets);
}

void OneGateUp(const OpContext& context, const FewParams& p, const FewSets& sets) {
  const auto kernel = FormatsOf(sets.gate_up) == Formats::kNvfp4 ? OneGateUpKernel<Formats::kNvfp4>
                                                                 : OneGateUpKernel<Formats::kMxfp4>;
  Args args = {.routing = OneRoutingOf(p),
               .gate_up = p.gate_up,
               .shared_data = p.shared.gate.data,
               .x = p.x,
               .h = p.h,
               .h_stride = static_cast<int32_t>(p.h_stride),
               .d = p.d,
               .f = p.f,
               .shared_f = p.shared_f,
               .activation = p.activation,
               .experts = p.biased ? p.experts : nullptr,
               .shared_gate_bias = p.shared.gate_bias,
               .shared_up_bias = p.shared.up_bias};
  const uint32_t shared_bytes = MakePlan(p, sets.gate_up, &args.plan);
  ShareMultiprocessor(kernel, shared_bytes);
  LaunchPdl(kernel, static_cast<unsigned>(CurrentDevice().multiprocessors), kOneThreads,
            shared_bytes, StreamOf(context), args);
}

}  // namespace nibble::kernels::cuda::moe
