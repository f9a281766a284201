#include "kernels/cuda/gated_delta_net/chunks.h"

#include <algorithm>

#include "kernels/cuda/gated_delta_net/chunk_matrices.cuh"
#include "kernels/cuda/gated_delta_net/chunk_recurrence.cuh"
#include "kernels/cuda/gated_delta_net/chunk_span.cuh"
#include "kernels/cuda/gated_delta_net/delta_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

// ---- Convolutions, unit scales, gates ----

constexpr int kPrepareWarps = 4;
constexpr int kPrepareTokens = 8;  // of a warp
static_assert(kDeltaChunk % kPrepareTokens == 0);

// A warp's four columns per lane of eight tokens, tokens 8 n .. 8 n + 7, into a tile. Neighbouring
// lanes swap, so that each stores eight columns of every other token.
__device__ __forceinline__ void StoreColumns(uint16_t* tile, int columns, int first_token,
                                             int column, const uint2 (&x)[kPrepareTokens],
                                             bool exists) {
  static_assert(kPrepareTokens == 8);
  const bool odd = threadIdx.x % 2 != 0;
  uint16_t* to = tile + TileOffset(columns, first_token, column / 8 * 8);
#pragma unroll
  for (int t = 0; t < kPrepareTokens; t += 2) {
    const uint2 give = odd ? x[t] : x[t + 1], keep = odd ? x[t + 1] : x[t];
    const uint2 got = make_uint2(__shfl_xor_sync(0xFFFFFFFFu, give.x, 1),
                                 __shfl_xor_sync(0xFFFFFFFFu, give.y, 1));
    if (exists)
      *reinterpret_cast<uint4*>(to + (t + (odd ? 1 : 0)) * 8) =
          odd ? make_uint4(got.x, got.y, keep.x, keep.y) : make_uint4(keep.x, keep.y, got.x, got.y);
  }
}

__device__ __forceinline__ uint2 PackBf16x4(const float (&x)[4]) {
  return make_uint2(ptx::PackBf16(x[0], x[1]), ptx::PackBf16(x[2], x[3]));
}

// x[i] summed over the warp, in lanes 2 i and 2 i + 1: halves of the lanes swap halves of the sums.
template <int kCount>
__device__ __forceinline__ float SumOfLane(const float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    return x[0] + __shfl_xor_sync(0xFFFFFFFFu, x[0], 1);
  } else {
    const bool upper = (threadIdx.x & kCount) != 0;
    float half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float give = upper ? x[i] : x[i + kCount / 2];
      const float keep = upper ? x[i + kCount / 2] : x[i];
      half[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, kCount);
    }
    return SumOfLane(half);
  }
}

// A warp takes kPrepareTokens tokens of one key head, or of up to 128 channels of a value head.
template <int kConvWidth>
__global__ void __launch_bounds__(32 * kPrepareWarps, kConvWidth > 0 ? 4 : 2)
    ChunkPrepareKernel(const __grid_constant__ GatedDeltaNetParams p,
                       const __grid_constant__ CausalConv conv,
                       const __grid_constant__ ChunkSpan span, int value_parts) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int job = static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t slot = blockIdx.y / (kDeltaChunk / kPrepareTokens);
  const int begin = static_cast<int>(blockIdx.y) % (kDeltaChunk / kPrepareTokens) * kPrepareTokens;
  const ChunkRows chunk = ChunkRows::At(p, span.first + slot);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (!chunk.exists) return;
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;

  if (job < p.k_heads) {
    const int column = 4 * lane, left = p.k_dim - column;
    const int64_t channel = int64_t{job} * p.k_dim + column;
    ConvChannels<kConvWidth> q(conv, channel, left), k(conv, key_channels + channel, left);
    q.Rewind(chunk.sequence, chunk.offset + begin);
    k.Rewind(chunk.sequence, chunk.offset + begin);
    uint2 q_row[kPrepareTokens], k_row[kPrepareTokens];  // inputs, then outputs
    q.LoadInputs(q_row);
    k.LoadInputs(k_row);
    float squares[2 * kPrepareTokens];  // of q and k, by token
#pragma unroll
    for (int t = 0; t < kPrepareTokens; ++t) {
      float q_out[4], k_out[4];
      q.Next(q_row[t], q_out);
      k.Next(k_row[t], k_out);
      squares[2 * t] = PieceDot(q_out, q_out);
      squares[2 * t + 1] = PieceDot(k_out, k_out);
      q_row[t] = PackBf16x4(q_out);
      k_row[t] = PackBf16x4(k_out);
    }
    const float sum = SumOfLane(squares);
    const KeySums sums = {.qq = sum, .kk = __shfl_down_sync(0xFFFFFFFFu, sum, 2), .qk = 0.0f};
    const int64_t key = slot * p.k_heads + job;
    uint16_t* tiles = span.keys + key * 2 * kDeltaChunk * span.key_width;
    const bool exists = column < span.key_width;
    StoreColumns(tiles, span.key_width, begin, column, k_row, exists);
    StoreColumns(tiles + kDeltaChunk * span.key_width, span.key_width, begin, column, q_row,
                 exists);
    if (lane % 4 == 0) {
      const UnitScales scales = UnitScalesOf(sums, p.k_dim);
      span.scales[key * kDeltaChunk + begin + lane / 4] = make_float2(scales.k, scales.q);
    }
    const int heads_per_key = p.v_heads / p.k_heads;
    for (int item = lane; item < kPrepareTokens * heads_per_key; item += 32) {
      const int head = job * heads_per_key + item / kPrepareTokens;
      const int i = begin + item % kPrepareTokens;
      const int64_t ba = (chunk.first + i) * p.ba_stride + head;
      const DeltaGates gates = GatesOf(p.b[ba], p.a[ba], expf(p.a_log[head]), p.dt_bias[head]);
      span.gates[(slot * p.v_heads + head) * kDeltaChunk + i] =
          make_float2(gates.decay, gates.beta);
    }
    return;
  }

  const int head = (job - p.k_heads) / value_parts;
  const int row = (job - p.k_heads) % value_parts * 128 + 4 * lane;
  if (head >= p.v_heads) return;
  ConvChannels<kConvWidth> v(conv, 2 * key_channels + int64_t{head} * p.v_dim + row, p.v_dim - row);
  v.Rewind(chunk.sequence, chunk.offset + begin);
  uint2 v_row[kPrepareTokens];
  v.LoadInputs(v_row);
#pragma unroll
  for (int t = 0; t < kPrepareTokens; ++t) {
    float out[4];
    v.Next(v_row[t], out);
    v_row[t] = PackBf16x4(out);
  }
  const int64_t tile =
      (slot * p.v_heads + head) * (span.value_width / kSliceRows) + row / kSliceRows;
  StoreColumns(span.values + tile * kDeltaChunk * kSliceRows, kSliceRows, begin, row % kSliceRows,
               v_row, row < span.value_width);
}

// ---- The gated norm ----

constexpr int kNormWarps = 8;

// CTA x: a value head; y: a slot. A warp takes every eighth token.
__global__ void __launch_bounds__(32 * kNormWarps)
    ChunkNormKernel(const __grid_constant__ GatedDeltaNetParams p,
                    const __grid_constant__ ChunkSpan span, bool vectors) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.x);
  const ChunkRows chunk = ChunkRows::At(p, span.first + blockIdx.y);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (!chunk.exists) return;
  const float* o =
      span.o + (int64_t{blockIdx.y} * p.v_heads + head) * kDeltaChunk * int64_t{span.value_width};
  const uint16_t* z = p.z + chunk.first * p.z_stride + int64_t{head} * p.v_dim;
  uint16_t* out = p.out + (chunk.first * p.v_heads + head) * p.v_dim;
  const int64_t out_stride = int64_t{p.v_heads} * p.v_dim;
  if (!vectors) {
    for (int i = warp; i < kDeltaChunk; i += kNormWarps) {
      const float* row = o + i * span.value_width;
      const float inverse = InverseRms(p.v_dim, p.eps, [&](int c) { return row[c]; });
      for (int c = lane; c < p.v_dim; c += 32)
        out[i * out_stride + c] = Bf16FromFloat(GatedOutput(
            row[c], inverse, p.norm_weight[c], Bf16ToFloat(z[i * p.z_stride + c]), p.sigmoid_gate));
    }
    return;
  }
  // v_dim is 128.
  constexpr int kTokens = kDeltaChunk / kNormWarps;
  const int c = 4 * lane;
  const float4 weight = *reinterpret_cast<const float4*>(p.norm_weight + c);
  float4 x[kTokens];
  uint2 gates[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const int i = t * kNormWarps + warp;
    x[t] = *reinterpret_cast<const float4*>(o + i * 128 + c);
    gates[t] = *reinterpret_cast<const uint2*>(z + i * p.z_stride + c);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float4 v = x[t];
    const float squares = SumOverWarp(fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x))));
    const float inverse = rsqrtf(squares * (1.0f / 128) + p.eps);
    const auto gated = [&](float value, float of_norm, float gate) {
      return GatedOutput(value, inverse, of_norm, gate, p.sigmoid_gate);
    };
    *reinterpret_cast<uint2*>(out + (t * kNormWarps + warp) * out_stride + c) =
        make_uint2(ptx::PackBf16(gated(v.x, weight.x, ptx::FirstBf16(gates[t].x)),
                                 gated(v.y, weight.y, ptx::SecondBf16(gates[t].x))),
                   ptx::PackBf16(gated(v.z, weight.z, ptx::FirstBf16(gates[t].y)),
                                 gated(v.w, weight.w, ptx::SecondBf16(gates[t].y))));
  }
}

// ---- Launches ----

constexpr int kMostPieces = 4;  // of keys

bool NormVectors(const GatedDeltaNetParams& p) {
  const auto all = reinterpret_cast<uintptr_t>(p.z) | reinterpret_cast<uintptr_t>(p.out) |
                   reinterpret_cast<uintptr_t>(p.norm_weight) / 2 |
                   static_cast<uintptr_t>(2 * p.z_stride);
  return p.v_dim == 128 && all % 8 == 0;
}

template <int kWidth>
void Launch(const GatedDeltaNetParams& p, const CausalConv& conv, const ChunkSpan& span,
            cudaStream_t stream) {
  const int value_parts = (p.v_dim + 127) / 128;
  const int jobs = p.k_heads + p.v_heads * value_parts;
  const auto slots = static_cast<unsigned>(span.count);
  const auto prepare = conv.width == 4 ? ChunkPrepareKernel<4> : ChunkPrepareKernel<0>;
  LaunchPdl(
      prepare,
      dim3((jobs + kPrepareWarps - 1) / kPrepareWarps, slots * (kDeltaChunk / kPrepareTokens)),
      dim3(32 * kPrepareWarps), 0, stream, p, conv, span, value_parts);
  LaunchPdl(ChunkMatricesKernel<kWidth>, dim3(static_cast<unsigned>(p.k_heads), slots),
            dim3(kMatricesThreads), 0, stream, p, span);
  LaunchPdl(ChunkRecurrenceKernel<kWidth>,
            dim3(static_cast<unsigned>(p.v_heads * (span.value_width / kSliceRows)),
                 static_cast<unsigned>(p.chunks.sequences)),
            dim3(kRecurrenceThreads), sizeof(RecurrenceShared<kWidth>), stream, p, conv, span);
  LaunchPdl(ChunkNormKernel, dim3(static_cast<unsigned>(p.v_heads), slots), dim3(32 * kNormWarps),
            0, stream, p, span, NormVectors(p));
}

int32_t KeyWidth(const GatedDeltaNetParams& p) { return kRowWidth<1> * PiecesOf(p.k_dim); }

}  // namespace

bool HasDeltaChunks() {
  return CurrentDevice().major >= 9 &&
         CurrentDevice().shared_memory_per_block >=
             static_cast<int>(sizeof(RecurrenceShared<kRowWidth<kMostPieces>>));
}

bool TakesDeltaChunks(const GatedDeltaNetParams& params) {
  return params.chunks.total > 0 && PiecesOf(params.k_dim) <= kMostPieces && HasDeltaChunks();
}

size_t DeltaChunksWorkspace(const GatedDeltaNetParams& sizes) {
  if (PiecesOf(sizes.k_dim) > kMostPieces || !HasDeltaChunks()) return 0;
  return ChunkSpan::Of(sizes, KeyWidth(sizes), 0, nullptr).bytes;
}

void RunDeltaChunks(const OpContext& context, const GatedDeltaNetParams& params,
                    const CausalConv& conv) {
  for (int64_t slot = 0; slot < params.t / kDeltaChunk; slot += ChunkSpan::kMostSlots) {
    const ChunkSpan span = ChunkSpan::Of(params, KeyWidth(params), slot, context.workspace);
    switch (PiecesOf(params.k_dim)) {
      case 1:
        Launch<kRowWidth<1>>(params, conv, span, StreamOf(context));
        break;
      case 2:
        Launch<kRowWidth<2>>(params, conv, span, StreamOf(context));
        break;
      default:
        Launch<kRowWidth<kMostPieces>>(params, conv, span, StreamOf(context));
    }
  }
}

}  // namespace nibble::kernels::cuda
