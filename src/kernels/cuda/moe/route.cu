// Few tokens: one block does all. More: a warp per token chooses, then blocks of kTokensOfBlock
// tokens place their rows, having counted those of all tokens.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/route.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kChooseWarps = 4;
constexpr int kPlaceThreads = 1024;
// Of shared memory: more would be taken from the L1 of the kernel that starts beside the block.
constexpr size_t kOneBlockBytes = 48 * 1024;

__global__ void __launch_bounds__(32 * kOneBlockTokens)
    RouteKernel(const __grid_constant__ RouteParams p) {
  extern __shared__ __align__(16) std::byte memory[];
  Block block;
  Carve(memory, p, blockDim.x / 32, &block);
  Prepare(p, block);
  __syncthreads();
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  RouteInOneBlock(p, block);
}

__global__ void __launch_bounds__(32 * kChooseWarps)
    ChooseKernel(const __grid_constant__ RouteParams p) {
  extern __shared__ __align__(16) std::byte memory[];
  const int warp = threadIdx.x / 32, experts = p.routing.experts, top_k = p.routing.top_k;
  auto* const scratch = reinterpret_cast<float*>(memory);
  auto* const picked = reinterpret_cast<Picked*>(scratch + kChooseWarps * ScratchFloats(p.routing));
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t token = int64_t{blockIdx.x} * kChooseWarps + warp;
  if (token >= p.t) return;
  ChooseExperts<true>(p.routing, p.logits + token * experts,
                      scratch + ScratchFloats(p.routing) * warp, picked + top_k * warp,
                      p.chosen + token * top_k, p.chosen_weight + token * top_k);
  ChooseEvenlyInstead(p.routing, token, p.chosen + token * top_k, p.chosen_weight + token * top_k);
}

__global__ void __launch_bounds__(kPlaceThreads)
    PlaceKernel(const __grid_constant__ RouteParams p) {
  extern __shared__ __align__(16) std::byte memory[];
  const int top_k = p.routing.top_k;
  Block block;
  Carve(memory, p, 0, &block);
  Prepare(p, block);
  __syncthreads();
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int first_token = blockIdx.x * kTokensOfBlock;
  const int tokens = min(kTokensOfBlock, static_cast<int>(p.t) - first_token);
  const int first = first_token * top_k, end = first + tokens * top_k;
  // Of integers, so in any order.
  for (int i = threadIdx.x; i < p.t * top_k; i += kPlaceThreads) {
    const int32_t e = p.chosen[i];
    if (block.held[e]) {
      atomicAdd(&block.rows[e], 1);
      if (i < first) atomicAdd(&block.rows_before[e], 1);
    }
    if (i >= first && i < end) {
      block.chosen[i - first] = e;
      block.weights[i - first] = p.chosen_weight[i];
    }
  }
  __syncthreads();
  FillMasks(p, block, tokens);
  __syncthreads();
  WriteLists(p, block, blockIdx.x, tokens);
}

}  // namespace

int64_t MaxGroups(int64_t t, int32_t experts, int32_t top_k, bool shared, int32_t group_rows) {
  const int64_t rows = t * top_k;
  const int64_t routed = std::min(rows, experts + rows / group_rows);
  return routed + (shared ? (t + group_rows - 1) / group_rows : 0);
}

void ChooseForTokens(const OpContext& context, const RouteParams& params) {
  const Routing& routing = params.routing;
  const size_t scratch = sizeof(float) * ScratchFloats(routing);
  LaunchPdl(ChooseKernel, static_cast<unsigned>((params.t + kChooseWarps - 1) / kChooseWarps),
            32 * kChooseWarps, kChooseWarps * (scratch + sizeof(Picked) * routing.top_k),
            StreamOf(context), params);
}

void Route(const OpContext& context, const RouteParams& params) {
  Block ignored;
  const size_t one_block = Carve(nullptr, params, kOneBlockTokens, &ignored);
  if (params.t <= kOneBlockTokens && one_block <= kOneBlockBytes) {
    LaunchPdl(RouteKernel, 1, 32 * kOneBlockTokens, one_block, StreamOf(context), params);
    return;
  }
  ChooseForTokens(context, params);
  LaunchPdl(PlaceKernel, static_cast<unsigned>((params.t + kTokensOfBlock - 1) / kTokensOfBlock),
            kPlaceThreads, Carve(nullptr, params, 0, &ignored), StreamOf(context), params);
}

}  // namespace nibble::kernels::cuda::moe
