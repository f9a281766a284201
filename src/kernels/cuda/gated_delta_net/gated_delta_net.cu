#include "kernels/cuda/gated_delta_net/gated_delta_net.h"

#include <algorithm>

#include "kernels/cuda/gated_delta_net/delta_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kMinRows = 32;  // of a CTA of the step kernel
constexpr int kMaxRows = 64;
constexpr int kMaxCluster = 8;  // the portable limit

// ---- Few tokens per sequence: one kernel ----

// CTA x: slice x % slices of value head x / slices; a cluster holds all slices of the value heads
// of one key head, y is the sequence. Shared: q, k (kWidth each), v (rows), o (2, slices * rows).
template <int kPieces>
__global__ void __launch_bounds__(kMaxRows* kThreadsPerRow)
    StepKernel(const __grid_constant__ GatedDeltaNetParams p,
               const __grid_constant__ CausalConv conv, int slices) {
  constexpr int kWidth = kRowWidth<kPieces>;
  constexpr int kMinThreads = kMinRows * kThreadsPerRow;
  constexpr int kThreadChannels = (2 * kWidth + kMinRows + kMinThreads - 1) / kMinThreads;
  extern __shared__ float4 shared_pieces[];
  auto* shared = reinterpret_cast<float*>(shared_pieces);

  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int rows = threads / kThreadsPerRow;
  const int lane = thread % 32, warp = thread / 32, j = lane % kRowLanes;
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x) % slices;
  const int heads_per_key = p.v_heads / p.k_heads;
  const int key_head = head / heads_per_key;
  const int first_row = slice * rows;  // of the head
  const int lane_row = first_row + warp * kWarpRows + lane / kRowLanes * kLaneRows;
  const float* q_shared = shared;
  const float* k_shared = shared + kWidth;
  const float* v_shared = shared + 2 * kWidth;  // of this CTA's rows
  float* o_shared = shared + 2 * kWidth + rows;

  // Everything but the step's activations, before the wait.
  const StepSequence s = StepSequence::At(p.sequences, blockIdx.y);
  float* state = StateAt<float>(p.recurrent_state, s) + int64_t{head} * p.v_dim * p.k_dim;
  const bool vectors = p.k_dim % 4 == 0 && reinterpret_cast<uintptr_t>(state) % 16 == 0;
  Columns<kPieces> rows_of_state[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const bool old = !s.starts && s.count > 0 && lane_row + r < p.v_dim;
    rows_of_state[r] = LoadStateRow<kPieces>(state + int64_t{lane_row + r} * p.k_dim,
                                             old ? p.k_dim : 0, j, vectors);
  }
  // Channels of this thread, by their place in shared memory; -1 where a place stays zero.
  const auto channel_at = [&](int m) -> int64_t {
    const int place = thread + m * threads;
    const int64_t key_width = int64_t{p.k_heads} * p.k_dim;
    if (place < 2 * kWidth) {
      const int column = place % kWidth;
      return column < p.k_dim ? place / kWidth * key_width + key_head * p.k_dim + column : -1;
    }
    const int row = first_row + place - 2 * kWidth;
    const bool mine = place < 2 * kWidth + rows && row < p.v_dim;
    return mine ? 2 * key_width + int64_t{head} * p.v_dim + row : -1;
  };
  float history[kThreadChannels], tap[kThreadChannels];
#pragma unroll
  for (int m = 0; m < kThreadChannels; ++m) {
    const int64_t channel = channel_at(m);
    history[m] = tap[m] = 0.0f;
    if (channel < 0 || s.count == 0) continue;
    history[m] = ConvHistory(conv, s, 0, channel);
    tap[m] = conv.weight[channel * conv.width + conv.width - 1];
  }
  const float decay_rate = expf(p.a_log[head]);
  const float dt_bias = p.dt_bias[head];
  const int out_row = first_row + warp * 32 + lane;  // of warps that write outputs
  const bool writes = warp * 32 < rows && out_row < p.v_dim;
  const float norm_weight = writes ? p.norm_weight[out_row] : 0.0f;

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  for (int64_t t = 0; t < s.count; ++t) {
    const int64_t token = s.first + t;
    float input[kThreadChannels];
#pragma unroll
    for (int m = 0; m < kThreadChannels; ++m) {
      const int64_t channel = channel_at(m);
      input[m] = channel >= 0 ? Bf16ToFloat(ConvInput(conv, s, t, channel)) : 0.0f;
      if (t > 0 && channel >= 0) history[m] = ConvHistory(conv, s, t, channel);
    }
    const int64_t ba = token * p.ba_stride + head;
    const float b = p.b[ba], a = p.a[ba];
    float z = 0.0f;
    if (writes) z = Bf16ToFloat(p.z[token * p.z_stride + int64_t{head} * p.v_dim + out_row]);
#pragma unroll
    for (int m = 0; m < kThreadChannels; ++m) {
      const int place = thread + m * threads;
      if (place < 2 * kWidth + rows)
        shared[place] = channel_at(m) >= 0 ? SiluBf16(fmaf(tap[m], input[m], history[m])) : 0.0f;
    }
    const DeltaGates gates = GatesOf(b, a, decay_rate, dt_bias);
    __syncthreads();

    Columns<kPieces> q = LoadSharedRow<kPieces>(q_shared, j);
    Columns<kPieces> k = LoadSharedRow<kPieces>(k_shared, j);
    const UnitScales scales =
        UnitScalesOf({.qq = TreeDot(q, q), .kk = TreeDot(k, k), .qk = TreeDot(q, k)}, p.k_dim);
#pragma unroll
    for (int i = 0; i < 4 * kPieces; ++i) q[i] *= scales.q, k[i] *= scales.k;

    float* o = o_shared + t % 2 * slices * rows;
    DeltaRow read[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r)
      read[r] =
          ReadRow(rows_of_state[r], q, k, scales.qk, gates, v_shared[lane_row - first_row + r]);
    // Each lane of a row tells one slice of the head.
    if (j < slices) {
      const uint32_t peer = static_cast<uint32_t>(head % heads_per_key * slices + j);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) ptx::StoreToPeer(o + lane_row + r, peer, read[r].o);
    }
    ptx::ClusterArrive();
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      UpdateRow(k, gates.decay, read[r].d, &rows_of_state[r]);
      if (t + 1 == s.count && lane_row + r < p.v_dim)
        StoreStateRow(rows_of_state[r], state + int64_t{lane_row + r} * p.k_dim, p.k_dim, j,
                      vectors);
    }
    ptx::ClusterWait();
    if (warp * 32 < rows) {
      const float inverse = InverseRms(p.v_dim, p.eps, [&](int i) { return o[i]; });
      if (writes)
        p.out[(token * p.v_heads + head) * p.v_dim + out_row] =
            GatedOutput(o[out_row], inverse, norm_weight, z, p.sigmoid_gate);
    }
  }
  if (s.count == 0) return;
  // The cluster has read its window.
  const bool owns_key_head = head % heads_per_key == 0 && slice == 0;
#pragma unroll
  for (int m = 0; m < kThreadChannels; ++m) {
    const int64_t channel = channel_at(m);
    const bool of_values = thread + m * threads >= 2 * kWidth;
    if (channel >= 0 && (of_values || owns_key_head)) MoveWindow(conv, s, channel);
  }
}

// ---- Prompts: convolutions, recurrence, norm ----

constexpr int kPromptRows = 32;  // of a CTA of the recurrence
constexpr int kPromptThreads = kPromptRows * kThreadsPerRow;
constexpr int kTile = 16;        // tokens staged at once
constexpr int64_t kSpan = 2048;  // tokens that the workspace holds
constexpr int kPrepareTokens = 16;
constexpr int kPrepareWarps = 4;

// Tokens [first, first + count) of a step on their way through the workspace.
struct PromptSpan {
  int64_t first = 0;
  int64_t count = 0;
  int32_t key_width = 0;       // Dk, padded
  int32_t value_width = 0;     // Dv, padded to rows of a CTA
  float* keys = nullptr;       // (count, Hk, 2, key_width): unit k and q
  float4* gates = nullptr;     // (count, Hv): decay, beta, q·k
  float* o = nullptr;          // (count, Hv, value_width)
  uint16_t* values = nullptr;  // (count, Hv, value_width)

  size_t Bytes(const GatedDeltaNetParams& p) const {
    return static_cast<size_t>(count) *
           (int64_t{p.k_heads} * 2 * key_width * 4 + int64_t{p.v_heads} * (16 + value_width * 6));
  }
};

PromptSpan SpanOf(const GatedDeltaNetParams& p, int64_t first, std::byte* workspace) {
  PromptSpan span;
  span.first = first;
  span.count = std::min(kSpan, p.t - first);
  span.key_width = kRowWidth<1> * PiecesOf(p.k_dim);
  span.value_width = (p.v_dim + kPromptRows - 1) / kPromptRows * kPromptRows;
  span.keys = reinterpret_cast<float*>(workspace);
  span.gates = reinterpret_cast<float4*>(span.keys + span.count * p.k_heads * 2 * span.key_width);
  span.o = reinterpret_cast<float*>(span.gates + span.count * p.v_heads);
  span.values = reinterpret_cast<uint16_t*>(span.o + span.count * p.v_heads * span.value_width);
  return span;
}

// A warp takes kPrepareTokens tokens of one key head, or of up to 128 channels of a value head.
// kParts: pieces of a row per lane.
template <int kParts, int kConvWidth>
__global__ void __launch_bounds__(32 * kPrepareWarps)
    PrepareKernel(const __grid_constant__ GatedDeltaNetParams p,
                  const __grid_constant__ CausalConv conv, const __grid_constant__ PromptSpan span,
                  int value_chunks) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int job = static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t first = span.first + int64_t{blockIdx.y} * kPrepareTokens;
  const int64_t end = min(first + kPrepareTokens, span.first + span.count);
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;

  if (job < p.k_heads) {
    const int column = 4 * lane;
    const auto channels = [&](int64_t base, int part) {
      const int c = column + 128 * part;
      return ConvChannels<kConvWidth>(conv, base + int64_t{job} * p.k_dim + c,
                                      max(0, min(4, p.k_dim - c)));
    };
    const auto run = [&](auto& q, auto& k) {
      const int heads_per_key = p.v_heads / p.k_heads;
      ForEachToken(
          p.sequences, first, end,
          [&](const StepSequence& s, int64_t offset) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              q[part].Rewind(s, offset);
              k[part].Rewind(s, offset);
            }
          },
          [&](int64_t t) {
            float q_out[kParts][4], k_out[kParts][4];
            KeySums sums = {};
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              q[part].Next(q_out[part]);
              k[part].Next(k_out[part]);
              float qq = PieceDot(q_out[part], q_out[part]);
              float kk = PieceDot(k_out[part], k_out[part]);
              float qk = PieceDot(q_out[part], k_out[part]);
#pragma unroll
              for (int distance = 8; distance <= 16; distance *= 2) {
                qq += __shfl_xor_sync(0xFFFFFFFFu, qq, distance);
                kk += __shfl_xor_sync(0xFFFFFFFFu, kk, distance);
                qk += __shfl_xor_sync(0xFFFFFFFFu, qk, distance);
              }
              sums.qq = part == 0 ? qq : sums.qq + qq;
              sums.kk = part == 0 ? kk : sums.kk + kk;
              sums.qk = part == 0 ? qk : sums.qk + qk;
            }
            const UnitScales scales = UnitScalesOf({.qq = SumOverRowLanes(sums.qq),
                                                    .kk = SumOverRowLanes(sums.kk),
                                                    .qk = SumOverRowLanes(sums.qk)},
                                                   p.k_dim);
            float* keys = span.keys + ((t - span.first) * p.k_heads + job) * 2 * span.key_width;
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              const int c = column + 128 * part;
              if (c >= span.key_width) continue;
              *reinterpret_cast<float4*>(keys + c) =
                  make_float4(k_out[part][0] * scales.k, k_out[part][1] * scales.k,
                              k_out[part][2] * scales.k, k_out[part][3] * scales.k);
              *reinterpret_cast<float4*>(keys + span.key_width + c) =
                  make_float4(q_out[part][0] * scales.q, q_out[part][1] * scales.q,
                              q_out[part][2] * scales.q, q_out[part][3] * scales.q);
            }
            for (int h = lane; h < heads_per_key; h += 32) {
              const int head = job * heads_per_key + h;
              const int64_t ba = t * p.ba_stride + head;
              const DeltaGates gates =
                  GatesOf(p.b[ba], p.a[ba], expf(p.a_log[head]), p.dt_bias[head]);
              span.gates[(t - span.first) * p.v_heads + head] =
                  make_float4(gates.decay, gates.beta, scales.qk, 0.0f);
            }
          });
    };
    if constexpr (kParts == 1) {
      ConvChannels<kConvWidth> q[] = {channels(0, 0)}, k[] = {channels(key_channels, 0)};
      run(q, k);
    } else {
      ConvChannels<kConvWidth> q[] = {channels(0, 0), channels(0, 1)};
      ConvChannels<kConvWidth> k[] = {channels(key_channels, 0), channels(key_channels, 1)};
      run(q, k);
    }
    return;
  }

  const int head = (job - p.k_heads) / value_chunks;
  const int row = (job - p.k_heads) % value_chunks * 128 + 4 * lane;
  if (head >= p.v_heads) return;
  ConvChannels<kConvWidth> v(conv, 2 * key_channels + int64_t{head} * p.v_dim + row,
                             max(0, min(4, p.v_dim - row)));
  ForEachToken(
      p.sequences, first, end, [&](const StepSequence& s, int64_t offset) { v.Rewind(s, offset); },
      [&](int64_t t) {
        float out[4];
        v.Next(out);
        if (row < span.value_width)
          StoreBf16x4(span.values + ((t - span.first) * p.v_heads + head) * span.value_width + row,
                      out);
      });
}

// Shared memory of the recurrence: two tiles of these.
template <int kPieces>
struct RecurrenceTile {
  float keys[kTile][2][kRowWidth<kPieces>];  // unit k and q
  float4 gates[kTile];
  uint16_t values[kTile][kPromptRows];
};

// CTA x: kPromptRows rows of a value head; y: the sequence. Then the convolution's windows move.
template <int kPieces>
__global__ void __launch_bounds__(kPromptThreads)
    RecurrenceKernel(const __grid_constant__ GatedDeltaNetParams p,
                     const __grid_constant__ CausalConv conv,
                     const __grid_constant__ PromptSpan span) {
  constexpr int kWidth = kRowWidth<kPieces>;
  extern __shared__ float4 shared_pieces[];
  auto* tiles = reinterpret_cast<RecurrenceTile<kPieces>*>(shared_pieces);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, j = lane % kRowLanes;
  const int slices = span.value_width / kPromptRows;
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x) % slices;
  const int heads_per_key = p.v_heads / p.k_heads;
  const int key_head = head / heads_per_key;
  const int row_in_cta = thread / 32 * kWarpRows + lane / kRowLanes * kLaneRows;
  const int lane_row = slice * kPromptRows + row_in_cta;

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const StepSequence s = StepSequence::At(p.sequences, blockIdx.y);
  const int64_t begin = max(s.first, span.first);
  const int64_t end = min(s.first + s.count, span.first + span.count);
  if (begin >= end) return;

  const auto stage = [&](int64_t from) {
    RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    constexpr int kKeyCopies = 2 * kWidth / 4;
    for (int i = thread; i < tokens * kKeyCopies; i += kPromptThreads) {
      const int64_t token = from - span.first + i / kKeyCopies;
      ptx::CopyAsync16(
          &tile.keys[0][0][0] + 4 * i,
          span.keys + (token * p.k_heads + key_head) * 2 * kWidth + i % kKeyCopies * 4);
    }
    constexpr int kValueCopies = kPromptRows / 8;
    if (thread < tokens * kValueCopies) {
      const int64_t token = from - span.first + thread / kValueCopies;
      ptx::CopyAsync16(&tile.values[0][0] + 8 * thread,
                       span.values + (token * p.v_heads + head) * span.value_width +
                           slice * kPromptRows + thread % kValueCopies * 8);
    } else if (const int i = thread - kTile * kValueCopies; i >= 0 && i < tokens) {
      ptx::CopyAsync16(&tile.gates[i], span.gates + (from - span.first + i) * p.v_heads + head);
    }
    ptx::CommitCopies();
  };
  static_assert(kTile * (kPromptRows / 8 + 1) <= kPromptThreads);
  stage(begin);

  float* state = StateAt<float>(p.recurrent_state, s) + int64_t{head} * p.v_dim * p.k_dim;
  const bool vectors = p.k_dim % 4 == 0 && reinterpret_cast<uintptr_t>(state) % 16 == 0;
  Columns<kPieces> rows[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const bool old = !(s.starts && begin == s.first) && lane_row + r < p.v_dim;
    rows[r] = LoadStateRow<kPieces>(state + int64_t{lane_row + r} * p.k_dim, old ? p.k_dim : 0, j,
                                    vectors);
  }

  for (int64_t from = begin; from < end; from += kTile) {
    ptx::WaitForCopies<0>();
    __syncthreads();
    if (from + kTile < end) stage(from + kTile);
    const RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    float* o = span.o + ((from - span.first) * p.v_heads + head) * span.value_width + lane_row;
    for (int t = 0; t < tokens; ++t) {
      const Columns<kPieces> k = LoadSharedRow<kPieces>(tile.keys[t][0], j);
      const Columns<kPieces> q = LoadSharedRow<kPieces>(tile.keys[t][1], j);
      const float4 packed = tile.gates[t];
      const DeltaGates gates = {.decay = packed.x, .beta = packed.y};
      DeltaRow read[kLaneRows];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        read[r] =
            ReadRow(rows[r], q, k, packed.z, gates, Bf16ToFloat(tile.values[t][row_in_cta + r]));
        UpdateRow(k, gates.decay, read[r].d, &rows[r]);
      }
      static_assert(kLaneRows == 2);
      if (j == 0)
        *reinterpret_cast<float2*>(o + int64_t{t} * p.v_heads * span.value_width) =
            make_float2(read[0].o, read[1].o);
    }
  }
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r)
    if (lane_row + r < p.v_dim)
      StoreStateRow(rows[r], state + int64_t{lane_row + r} * p.k_dim, p.k_dim, j, vectors);

  if (end < s.first + s.count) return;
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;
  if (thread < kPromptRows && slice * kPromptRows + thread < p.v_dim)
    MoveWindow(conv, s, 2 * key_channels + int64_t{head} * p.v_dim + slice * kPromptRows + thread);
  if (head % heads_per_key != 0 || slice != 0) return;
  for (int c = thread; c < p.k_dim; c += kPromptThreads) {
    MoveWindow(conv, s, int64_t{key_head} * p.k_dim + c);
    MoveWindow(conv, s, key_channels + int64_t{key_head} * p.k_dim + c);
  }
}

constexpr int kNormWarps = 8;

// A warp per token and value head.
__global__ void __launch_bounds__(32 * kNormWarps)
    GatedNormKernel(const __grid_constant__ GatedDeltaNetParams p,
                    const __grid_constant__ PromptSpan span) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  if (item >= span.count * p.v_heads) return;
  const int64_t token = span.first + item / p.v_heads;
  const int head = static_cast<int>(item % p.v_heads);
  const float* o = span.o + item * span.value_width;
  const uint16_t* z = p.z + token * p.z_stride + int64_t{head} * p.v_dim;
  uint16_t* out = p.out + (token * p.v_heads + head) * p.v_dim;
  const float inverse = InverseRms(p.v_dim, p.eps, [&](int i) { return o[i]; });
  for (int i = lane; i < p.v_dim; i += 32)
    out[i] = GatedOutput(o[i], inverse, p.norm_weight[i], Bf16ToFloat(z[i]), p.sigmoid_gate);
}

// ---- Launches ----

// Rows of a CTA of the step kernel; 0 where its cluster would be too large.
int StepRows(const GatedDeltaNetParams& p) {
  if (CurrentDevice().major < 9) return 0;
  const int heads_per_key = p.v_heads / p.k_heads;
  for (int rows = kMinRows; rows <= kMaxRows; rows *= 2)
    if (heads_per_key * ((p.v_dim + rows - 1) / rows) <= kMaxCluster) return rows;
  return 0;
}

template <int kPieces>
void LaunchStep(const GatedDeltaNetParams& p, const CausalConv& conv, int rows,
                cudaStream_t stream) {
  const int slices = (p.v_dim + rows - 1) / rows;
  const dim3 grid(static_cast<unsigned>(p.v_heads * slices),
                  static_cast<unsigned>(p.sequences.count));
  const size_t shared = sizeof(float) * (2 * kRowWidth<kPieces> + rows + 2 * slices * rows);
  LaunchPdlCluster(StepKernel<kPieces>, grid, dim3(rows * kThreadsPerRow),
                   static_cast<unsigned>(p.v_heads / p.k_heads * slices), shared, stream, p, conv,
                   slices);
}

template <int kPieces>
void LaunchPrompt(const GatedDeltaNetParams& p, const CausalConv& conv, const PromptSpan& span,
                  cudaStream_t stream) {
  constexpr int kParts = kPieces > 4 ? kPieces / 4 : 1;
  const int value_chunks = (p.v_dim + 127) / 128;
  const int jobs = p.k_heads + p.v_heads * value_chunks;
  const auto prepare = conv.width == 4 ? PrepareKernel<kParts, 4> : PrepareKernel<kParts, 0>;
  LaunchPdl(prepare,
            dim3((jobs + kPrepareWarps - 1) / kPrepareWarps,
                 static_cast<unsigned>((span.count + kPrepareTokens - 1) / kPrepareTokens)),
            dim3(32 * kPrepareWarps), 0, stream, p, conv, span, value_chunks);
  LaunchPdl(RecurrenceKernel<kPieces>,
            dim3(static_cast<unsigned>(p.v_heads * (span.value_width / kPromptRows)),
                 static_cast<unsigned>(p.sequences.count)),
            dim3(kPromptThreads), 2 * sizeof(RecurrenceTile<kPieces>), stream, p, conv, span);
  LaunchPdl(GatedNormKernel,
            dim3(static_cast<unsigned>((span.count * p.v_heads + kNormWarps - 1) / kNormWarps)),
            dim3(32 * kNormWarps), 0, stream, p, span);
}

template <int kPieces>
void Run(const OpContext& context, const GatedDeltaNetParams& p, const CausalConv& conv) {
  const int rows = StepRows(p);
  if (rows > 0 && p.t <= 4 * p.sequences.count)
    return LaunchStep<kPieces>(p, conv, rows, StreamOf(context));
  for (int64_t first = 0; first < p.t; first += kSpan)
    LaunchPrompt<kPieces>(p, conv, SpanOf(p, first, context.workspace), StreamOf(context));
}

}  // namespace

size_t GatedDeltaNetWorkspace(int, const GatedDeltaNetParams& sizes) {
  return SpanOf(sizes, 0, nullptr).Bytes(sizes);
}

void GatedDeltaNet(const OpContext& context, const GatedDeltaNetParams& params) {
  CausalConv conv = {.x = params.qkv,
                     .stride = params.qkv_stride,
                     .channels = 2 * params.k_heads * params.k_dim + params.v_heads * params.v_dim,
                     .width = params.conv_width,
                     .weight = params.conv_weight,
                     .window = params.conv_state};
  conv.vectors =
      Aligned(conv.x, 8) && conv.stride % 4 == 0 && params.k_dim % 4 == 0 && params.v_dim % 4 == 0;
  switch (PiecesOf(params.k_dim)) {
    case 1:
      return Run<1>(context, params, conv);
    case 2:
      return Run<2>(context, params, conv);
    case 4:
      return Run<4>(context, params, conv);
    default:
      return Run<8>(context, params, conv);
  }
}

}  // namespace nibble::kernels::cuda
