#include "kernels/cuda/w4a4/experts.h"

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/w4a4/block.cuh"
#include "kernels/cuda/w4a4/tile.cuh"

namespace nibble::kernels::cuda::w4a4 {
namespace {

constexpr int kTokens = moe::kColumnsOfGroup;  // of a CTA: a group of rows
constexpr int kGroupPieces = kTokens / kGroupTokens;

enum class Side : int { kGateUp, kDown };

// Column `column` of what a row of the side's linear meets, before its own transform.
template <Side kSide>
struct RowSource {
  const ExpertsParams& p;
  const uint16_t* from;
  float weight;

  __device__ __forceinline__ RowSource(const ExpertsParams& params, int row) : p(params) {
    if constexpr (kSide == Side::kGateUp) {
      from = p.x + int64_t{p.lists.row_token[row]} * p.d;
      weight = p.lists.row_weight[row];
    } else {
      from = p.hidden + int64_t{row} * p.gate_up.n;
      weight = 1.0f;
    }
  }
  __device__ __forceinline__ float At(int column) const {
    const float value = ptx::FirstBf16(from[column]);
    if constexpr (kSide == Side::kGateUp) {
      return p.scale_by_weight ? ptx::RoundBf16(value * weight) : value;
    } else {
      const bool gated = p.activation.kind != ActivationKind::kSquaredRelu;
      const float up = gated ? ptx::FirstBf16(from[p.f + column]) : 0.0f;
      return ptx::RoundBf16(Activate(p.activation, value, up));
    }
  }
};

// A warp: a k-tile of eight rows of a group, as in tokens.cu.
template <Side kSide>
__global__ void __launch_bounds__(kThreads)
    QuantizeRowsKernel(const __grid_constant__ ExpertsParams p, int k_tiles) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int tile = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  const int group_index = static_cast<int>(blockIdx.y) / kGroupPieces;
  if (tile >= k_tiles || group_index >= p.lists.counts->routed_groups) return;
  const moe::Group& group = p.lists.groups[group_index];
  const int first = static_cast<int>(blockIdx.y) % kGroupPieces * kGroupTokens;
  if (first >= group.rows) return;
  const int lane = static_cast<int>(threadIdx.x % 32), row = first + lane / 4;
  const int column = tile * kTileColumns + lane % 4 * kNvfp4Block;
  const int k = kSide == Side::kGateUp ? p.d : p.f;
  moe::InputTransform transform;
  if (p.transforms != nullptr) {
    const moe::ExpertTransforms& of_expert = p.transforms[group.id];
    transform = kSide == Side::kGateUp ? of_expert.gate_up : of_expert.down;
  }
  float values[kNvfp4Block] = {};
  if (row < group.rows && column < k) {
    const RowSource<kSide> source(p, group.first_row + row);
#pragma unroll
    for (int i = 0; i < kNvfp4Block; ++i) {
      const int at = column + i;
      values[i] = source.At(transform.order == nullptr ? at : transform.order[at]);
      if (transform.multiplier != nullptr)
        values[i] = ptx::RoundBf16(values[i] * transform.multiplier[at]);
    }
  }
  const float inverse = __fdiv_rn(1.0f, p.input_scales[2 * group.id + static_cast<int>(kSide)]);
  const int64_t slice = tile / kSliceTiles;
  StoreBlock(values, inverse, tile % kSliceTiles, lane,
             p.pieces + (slice * p.max_groups * kGroupPieces + blockIdx.y) * kPieceBytes);
}

// CTA (group, 128 rows of the weight).
template <Side kSide>
__global__ void __launch_bounds__(kThreads) ProductKernel(const __grid_constant__ ExpertsParams p) {
#ifdef NIBBLE_COMPILE_W4A4
  extern __shared__ __align__(16) std::byte ring[];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t index = blockIdx.x;
  if (index >= p.lists.counts->routed_groups) return;
  const moe::Group& group = p.lists.groups[index];
  constexpr bool kFirst = kSide == Side::kGateUp;
  const WeightTiles& like = kFirst ? p.gate_up : p.down;
  const TileWork work = {.weight = kFirst ? group.expert.gate.data : group.expert.down.data,
                         .first_row_tile = static_cast<int>(blockIdx.y) * kRowTiles,
                         .tokens = p.pieces + index * kGroupPieces * kPieceBytes,
                         .slice_bytes = p.max_groups * kGroupPieces * kPieceBytes,
                         .groups = (group.rows + kGroupTokens - 1) / kGroupTokens};
  TileEnd end = {.row_scales = kFirst ? group.expert.gate_scales : group.expert.down_scales,
                 .bias = kFirst ? group.expert.gate_bias : group.expert.down_bias,
                 .input_scale = p.input_scales[2 * group.id + static_cast<int>(kSide)],
                 .n = like.n,
                 .y_stride = like.n,
                 .m = group.rows};
  if constexpr (kFirst) {
    end.y = p.hidden + int64_t{group.first_row} * like.n;
  } else {
    end.y_f32 = p.y + int64_t{group.first_row} * like.n;
  }
  RunTile<kTokens>(like, work, end, ring, [] {});
#endif
}

template <Side kSide>
void RunSide(const OpContext& context, const ExpertsParams& p) {
  const WeightTiles& like = kSide == Side::kGateUp ? p.gate_up : p.down;
  const int k_tiles = static_cast<int>(Slices(like.k)) * kSliceTiles;
  const auto groups = static_cast<unsigned>(p.max_groups);
  LaunchPdl(QuantizeRowsKernel<kSide>,
            dim3(static_cast<unsigned>((k_tiles + kWarps - 1) / kWarps), groups * kGroupPieces),
            dim3(kThreads), 0, StreamOf(context), p, k_tiles);
  LaunchPdl(ProductKernel<kSide>, dim3(groups, static_cast<unsigned>((like.n + kRows - 1) / kRows)),
            dim3(kThreads), TileShape<kTokens>::kRingBytes, StreamOf(context), p);
}

}  // namespace

size_t ExpertTokenBytes(int64_t max_groups, int64_t max_k) {
  return static_cast<size_t>(max_groups * kGroupPieces * Slices(max_k) * kPieceBytes);
}

void RunExperts(const OpContext& context, const ExpertsParams& params) {
  RunSide<Side::kGateUp>(context, params);
  RunSide<Side::kDown>(context, params);
}

}  // namespace nibble::kernels::cuda::w4a4
