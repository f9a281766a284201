#include "kernels/cuda/fp8/tokens.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::fp8 {
namespace {

constexpr int kWarps = kTokensOfGroup;
// Runs of 256 columns that a CTA takes where tokens need not be seen whole.
constexpr int kRunsOfBlock = 4;

enum class Scaling : uint8_t { kGiven, kByToken, kByGroup };

struct Layout {
  std::byte* codes;
  float* scales;
  int token_groups;
  int column_groups;
};

__device__ __forceinline__ float Largest(uint4 vector, float largest) {
  float values[kVector];
  Unpack(vector, values);
#pragma unroll
  for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fabsf(values[i]));  // not of NaN
  return largest;
}

// Over neighbouring kLanes lanes.
template <int kLanes>
__device__ __forceinline__ float LargestOf(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Four columns in the order of the weights' bytes.
__device__ __forceinline__ uint32_t Codes(const float* values, float multiplier) {
  const uint32_t low = ptx::PackE4m3(values[2] * multiplier, values[0] * multiplier);
  const uint32_t high = ptx::PackE4m3(values[3] * multiplier, values[1] * multiplier);
  return low | high << 16;
}

// A warp per token. Of a run of 256 columns a lane has 8 neighbouring ones, half i of the 16 of
// lane q of a k-tile (weight_tiles.h).
template <Scaling kScaling, bool kNorms>
__global__ void __launch_bounds__(32 * kWarps)
    QuantizeKernel(const QuantizeParams p, bool aligned, Layout out) {
  const int row = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = int64_t{blockIdx.x} * kTokensOfGroup + row;
  const int k = static_cast<int>(p.k);
  const int all_runs = (k + kRunValues - 1) / kRunValues;
  const int first_run = gridDim.y == 1 ? 0 : static_cast<int>(blockIdx.y) * kRunsOfBlock;
  const int end_run = gridDim.y == 1 ? all_runs : min(all_runs, first_run + kRunsOfBlock);
  const int64_t tokens = int64_t{out.token_groups} * kTokensOfGroup;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  const uint16_t* const x = p.x + token * p.x_stride;
  const auto stored = [&](int run) {
    const int column = run * kRunValues + lane * kVector;
    return token < p.m ? LoadBf16x8(x + column, k - column, aligned) : uint4{};
  };
  [[maybe_unused]] float inverse = 0.0f;
  if constexpr (kNorms) {
    float mine = 0.0f;  // of the run that stands in this lane
    for (int run = 0; run < all_runs; ++run) {
      const float sum = WarpSum(AddSquares(stored(run), 0.0f));
      if (lane == run) mine = sum;
    }
    inverse = InverseRoot(WarpSum(mine), 1.0f / static_cast<float>(k), p.norm.eps);
  }
  const auto load = [&](int run) {
    const uint4 vector = stored(run);
    if constexpr (!kNorms) return vector;
    const int column = run * kRunValues + lane * kVector;
    float weight[kVector];
    LoadF32x8(p.norm.weight + column, k - column, true, weight);
    return NormVector(vector, inverse, weight, p.norm.style);
  };

  float scale = p.as.scale;
  if constexpr (kScaling == Scaling::kByToken) {
    float largest = 0.0f;
#pragma unroll 4
    for (int run = 0; run < all_runs; ++run) largest = Largest(load(run), largest);
    scale = Fp8ActivationScale(LargestOf<kWarp>(largest));
  }
  if (kScaling != Scaling::kByGroup && first_run == 0)
    for (int group = lane; group < (p.as.group < k ? out.column_groups : 1); group += kWarp)
      out.scales[group * tokens + token] = scale;

#pragma unroll 2
  for (int run = first_run; run < end_run; ++run) {
    const uint4 vector = load(run);
    const int column = run * kRunValues + lane * kVector;
    const int group = column / kFp8GroupColumns;
    if constexpr (kScaling == Scaling::kByGroup)
      scale = Fp8ActivationScale(LargestOf<kFp8GroupColumns / kVector>(Largest(vector, 0.0f)));
    if (group >= out.column_groups) continue;
    if (kScaling == Scaling::kByGroup && column % kFp8GroupColumns == 0)
      out.scales[group * tokens + token] = scale;
    float values[kVector];
    Unpack(vector, values);
    const float multiplier = Fp8ActivationMultiplier(scale);
    std::byte* const piece = out.codes +
                             (int64_t{group} * out.token_groups + blockIdx.x) * kPieceBytes +
                             row * 128 + lane % 8 / 2 * 4;
    const int chunk = lane % 16 / 8 * 4 + lane % 2 * 2;
    *reinterpret_cast<uint32_t*>(piece + (chunk ^ row) * 16) = Codes(values, multiplier);
    *reinterpret_cast<uint32_t*>(piece + ((chunk + 1) ^ row) * 16) = Codes(values + 4, multiplier);
  }
}

bool Aligned(const QuantizeParams& p) {
  return p.k % kVector == 0 && VectorsAligned(p.x_stride, p.x);
}

template <Scaling kScaling>
void Launch(const QuantizeParams& p, const Layout& layout, void* stream) {
  const bool norms = p.norm.weight != nullptr;
  const auto runs = static_cast<unsigned>((p.k + kRunValues - 1) / kRunValues);
  const bool whole = norms || kScaling == Scaling::kByToken;
  LaunchPdl(norms ? QuantizeKernel<kScaling, true> : QuantizeKernel<kScaling, false>,
            dim3(static_cast<unsigned>(layout.token_groups),
                 whole ? 1 : (runs + kRunsOfBlock - 1) / kRunsOfBlock),
            32 * kWarps, 0, static_cast<cudaStream_t>(stream), p, Aligned(p), layout);
}

}  // namespace

bool QuantizationNorms(const QuantizeParams& p) {
  return Aligned(p) && p.k <= kMaxFusedNormWidth &&
         reinterpret_cast<uintptr_t>(p.norm.weight) % 16 == 0;
}

QuantizedTokens QuantizeTokens(const QuantizeParams& params, std::byte* memory, void* stream) {
  const int64_t token_groups = TokenGroups(params.m), column_groups = ColumnGroups(params.k);
  const Layout layout = {
      .codes = memory,
      .scales = reinterpret_cast<float*>(memory + token_groups * column_groups * kPieceBytes),
      .token_groups = static_cast<int>(token_groups),
      .column_groups = static_cast<int>(column_groups)};
  if (params.as.scale > 0.0f) {
    Launch<Scaling::kGiven>(params, layout, stream);
  } else if (params.as.group < params.k) {
    Launch<Scaling::kByGroup>(params, layout, stream);
  } else {
    Launch<Scaling::kByToken>(params, layout, stream);
  }
  return {layout.codes, layout.scales, layout.token_groups, layout.column_groups};
}

}  // namespace nibble::kernels::cuda::fp8
