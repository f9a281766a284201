#include "kernels/cuda/gated_delta_net/gated_delta_net.h"

#include <algorithm>

#include "kernels/cuda/gated_delta_net/chunks.h"
#include "kernels/cuda/gated_delta_net/delta_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/predicated.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kStepThreads = 256;
constexpr int kStepRows = kStepThreads / kRowLanes;  // times those of a lane: of a CTA
constexpr int kMaxCluster = 8;                       // the portable limit

// ---- Few tokens per sequence: one kernel ----

// A CTA takes slice x of value head y of sequence z; a cluster all slices of the value heads of one
// key head. k_dim and v_dim are even, rows of the state are vectors.
template <int kPieces, int kLaneRows>
__global__ void __launch_bounds__(kStepThreads, kLaneRows == 1 ? 3 : 2)
    StepKernel(const __grid_constant__ GatedDeltaNetParams p,
               const __grid_constant__ CausalConv conv, int heads_per_key) {
#if __CUDA_ARCH__ >= 900
  constexpr int kWidth = kRowWidth<kPieces>;
  constexpr int kCtaRows = kStepRows * kLaneRows;
  constexpr int kPairs = ((2 * kWidth + kCtaRows) / 2 + kStepThreads - 1) / kStepThreads;
  __shared__ __align__(16) float mixed[2 * kWidth + kCtaRows];        // q, k, v of this CTA's rows
  __shared__ __align__(16) float outputs[2][kMaxCluster * kCtaRows];  // o of the head, by parity
  __shared__ ptx::BytesBarrier outputs_came[2];

  const int thread = static_cast<int>(threadIdx.x), j = thread % kRowLanes;
  const int slices = static_cast<int>(gridDim.x), head = static_cast<int>(blockIdx.y);
  const int key_head = head / heads_per_key, first_rank = head % heads_per_key * slices;
  const int first_row = static_cast<int>(blockIdx.x) * kCtaRows;  // of the head
  const int cta_row = thread / kRowLanes * kLaneRows;             // the first of this lane's
  const int row = first_row + cta_row;

  // Everything but the step's activations, before the wait; unless this step wrote states already.
  if (p.chunks.tokens != nullptr) ptx::WaitForPredecessor();
  if (thread < 2) outputs_came[thread].Init();
  const StepSequence s = StepSequence::AfterChunks(p.sequences, p.chunks, blockIdx.z);
  float* state = StateAt<float>(p.recurrent_state, s) + (int64_t{head} * p.v_dim + row) * p.k_dim;
  Columns<kPieces> rows[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const bool old = !s.starts && s.count > 0 && row + r < p.v_dim;
    rows[r] = LoadStateRow<kPieces>(state + r * p.k_dim, old ? p.k_dim : 0, j, true);
  }
  ConvPair channels[kPairs];  // by their place in `mixed`
#pragma unroll
  for (int m = 0; m < kPairs; ++m) {
    const int place = 2 * (thread + m * kStepThreads);
    const int key_channels = p.k_heads * p.k_dim;
    const int column = place % kWidth, of_head = first_row + place - 2 * kWidth;
    int channel = -1;
    if (place < 2 * kWidth) {
      if (column < p.k_dim) channel = place / kWidth * key_channels + key_head * p.k_dim + column;
    } else if (place < 2 * kWidth + kCtaRows && of_head < p.v_dim) {
      channel = 2 * key_channels + head * p.v_dim + of_head;
    }
    channels[m].Begin(conv, s, s.count > 0 ? channel : -1);
  }
  const float decay_rate = expf(p.a_log[head]);
  const float dt_bias = p.dt_bias[head];
  const int out_row = first_row + thread;  // of threads that write outputs
  const bool writes = thread < kCtaRows && out_row < p.v_dim;
  const float norm_weight = writes ? p.norm_weight[out_row] : 0.0f;
  ptx::SyncCluster();  // its barriers are ready, its windows are read

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
#pragma unroll 1
  for (int64_t t = 0; t < s.count; ++t) {
    const int64_t token = s.first + t;
    uint32_t inputs[kPairs];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) inputs[m] = channels[m].LoadInput(conv, token);
    const int64_t ba = token * p.ba_stride + head;
    const float b = p.b[ba], a = p.a[ba];
    float z = 0.0f;
    if (writes) z = Bf16ToFloat(p.z[token * p.z_stride + int64_t{head} * p.v_dim + out_row]);
    if (t > 0) __syncthreads();  // the token before has been read
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int place = 2 * (thread + m * kStepThreads);
      const float2 out = channels[m].Next(inputs[m]);
      if (place < 2 * kWidth + kCtaRows) *reinterpret_cast<float2*>(mixed + place) = out;
    }
    const DeltaGates gates = GatesOf(b, a, decay_rate, dt_bias);
    __syncthreads();

    const UnitScales scales = ScalesOf<kPieces>(mixed, mixed + kWidth, p.k_dim, j);
    const Columns<kPieces> k = LoadScaledRow<kPieces>(mixed + kWidth, scales.k, j);
    float d[kLaneRows], o[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float recalled = SumOverRowLanes(LaneDot(rows[r], k));
      d[r] = DeltaOf(recalled, mixed[2 * kWidth + cta_row + r], gates);
    }
    const Columns<kPieces> q = LoadScaledRow<kPieces>(mixed, scales.q, j);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r)
      o[r] = OutputOf(SumOverRowLanes(LaneDot(rows[r], q)), gates.decay, d[r], scales.qk);
    // Each lane of a row tells one slice of the head.
    ptx::BytesBarrier& came = outputs_came[t % 2];
    float* head_o = outputs[t % 2];
    if (j < slices) came.Send(head_o + row, static_cast<uint32_t>(first_rank + j), o);
    if (thread == 0) came.Expect(static_cast<uint32_t>(slices * kCtaRows * sizeof(float)));
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      Learn(k, gates.decay, d[r], &rows[r]);
      if (t + 1 == s.count && row + r < p.v_dim)
        StoreStateRow(rows[r], state + r * p.k_dim, p.k_dim, j, true);
    }
    if (thread < kCtaRows) {
      came.Wait(static_cast<uint32_t>(t / 2 % 2));
      const float inverse = InverseRms(p.v_dim, p.eps, [&](int i) { return head_o[i]; });
      if (writes)
        p.out[(token * p.v_heads + head) * p.v_dim + out_row] =
            Bf16FromFloat(GatedOutput(head_o[out_row], inverse, norm_weight, z, p.sigmoid_gate));
    }
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const bool of_values = 2 * (thread + m * kStepThreads) >= 2 * kWidth;
      if (t + 1 < s.count) {
        channels[m].Sum(conv);
      } else if (of_values || (head % heads_per_key == 0 && first_row == 0)) {
        channels[m].StoreWindow(conv, s);
      }
    }
  }
#else
  __trap();  // StepLaneRows gives it no rows before 9.0
#endif
}

// ---- Prompts: convolutions, recurrence, norm ----

constexpr int kPromptRows = 32;     // of a CTA of the recurrence
constexpr int kPromptLaneRows = 2;  // of a lane there
constexpr int kPromptThreads = kPromptRows / kPromptLaneRows * kRowLanes;
constexpr int kTile = 16;        // tokens staged at once
constexpr int kUnrolled = 2;     // of them computed as straight code
constexpr int64_t kSpan = 2048;  // tokens that the workspace holds
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

// A warp takes `run_tokens` tokens of one key head, or of up to 128 channels of a value head.
// kParts: pieces of a row per lane.
template <int kParts, int kConvWidth>
__global__ void __launch_bounds__(32 * kPrepareWarps)
    PrepareKernel(const __grid_constant__ GatedDeltaNetParams p,
                  const __grid_constant__ CausalConv conv, const __grid_constant__ PromptSpan span,
                  int value_chunks, int run_tokens) {
  // The recurrence is not launched early: its CTAs should find all multiprocessors empty.
  ptx::WaitForPredecessor();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int job = static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t first = span.first + int64_t{blockIdx.y} * run_tokens;
  const int64_t end = min(first + run_tokens, span.first + span.count);
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;

  if (job < p.k_heads) {
    const int column = 4 * lane;
    const auto channels = [&](int64_t base, int part) {
      const int c = column + 128 * part;
      return ConvChannels<kConvWidth>(conv, base + int64_t{job} * p.k_dim + c, p.k_dim - c);
    };
    const auto run = [&](auto& q, auto& k) {
      const int heads_per_key = p.v_heads / p.k_heads;
      ForEachToken(
          p.sequences, p.chunks, first, end,
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
  ConvChannels<kConvWidth> v(conv, 2 * key_channels + int64_t{head} * p.v_dim + row, p.v_dim - row);
  ForEachToken(
      p.sequences, p.chunks, first, end,
      [&](const StepSequence& s, int64_t offset) { v.Rewind(s, offset); },
      [&](int64_t t) {
        float out[4];
        v.Next(out);
        if (row < span.value_width)
          StoreBf16x4(span.values + ((t - span.first) * p.v_heads + head) * span.value_width + row,
                      out);
      });
}

// What a lane needs of a token.
template <int kPieces>
struct RecurrenceOperands {
  Columns<kPieces> k;
  Columns<kPieces> q;
  DeltaGates gates;
  float qk;
  float v[kPromptLaneRows];
};

// Shared memory of the recurrence: two tiles of these.
template <int kPieces>
struct RecurrenceTile {
  float keys[kTile][2][kRowWidth<kPieces>];  // unit k and q
  float4 gates[kTile];
  uint16_t values[kTile][kPromptRows];

  __device__ __forceinline__ RecurrenceOperands<kPieces> Operands(int t, int row, int j) const {
    RecurrenceOperands<kPieces> x;
    x.k = LoadSharedRow<kPieces>(keys[t][0], j);
    x.q = LoadSharedRow<kPieces>(keys[t][1], j);
    const float4 packed = gates[t];
    x.gates = {.decay = packed.x, .beta = packed.y};
    x.qk = packed.z;
    static_assert(kPromptLaneRows == 2);
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(&values[t][row]);
    x.v[0] = __uint_as_float(pair << 16), x.v[1] = __uint_as_float(pair & 0xFFFF0000u);
    return x;
  }
};

// The outputs of a lane's rows at the token before, on their way to being summed.
struct PendingOutput {
  float* o = nullptr;
  float read[kPromptLaneRows] = {};
  float d[kPromptLaneRows] = {};
  float decay = 0.0f;
  float qk = 0.0f;

  __device__ __forceinline__ void Store(bool wanted) const {
    static_assert(kPromptLaneRows == 2);
    ptx::StorePairIf(wanted, o, OutputOf(read[0], decay, d[0], qk),
                     OutputOf(read[1], decay, d[1], qk));
  }
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
  const int thread = static_cast<int>(threadIdx.x), j = thread % kRowLanes;
  const int slices = span.value_width / kPromptRows;
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x) % slices;
  const int heads_per_key = p.v_heads / p.k_heads;
  const int key_head = head / heads_per_key;
  const int row_in_cta = thread / kRowLanes * kPromptLaneRows;
  const int lane_row = slice * kPromptRows + row_in_cta;

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const StepSequence s = StepSequence::AfterChunks(p.sequences, p.chunks, blockIdx.y);
  const int64_t begin = max(s.first, span.first);
  const int64_t end = min(s.first + s.count, span.first + span.count);
  if (begin >= end) return;

  const auto stage = [&](int64_t from) {
    RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    CopyRowsAsync<kPromptThreads, 2 * kWidth, kTile>(
        &tile.keys[0][0][0], span.keys + ((from - span.first) * p.k_heads + key_head) * 2 * kWidth,
        p.k_heads * 2 * kWidth, tokens);
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
  Columns<kPieces> rows[kPromptLaneRows];
#pragma unroll
  for (int r = 0; r < kPromptLaneRows; ++r) {
    const bool old = !(s.starts && begin == s.first) && lane_row + r < p.v_dim;
    rows[r] = LoadStateRow<kPieces>(state + int64_t{lane_row + r} * p.k_dim, old ? p.k_dim : 0, j,
                                    vectors);
  }

  PendingOutput last;
  const int o_stride = p.v_heads * span.value_width;
  for (int64_t from = begin; from < end; from += kTile) {
    ptx::WaitForCopies<0>();
    __syncthreads();
    if (from + kTile < end) stage(from + kTile);
    const RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    float* o = span.o + ((from - span.first) * p.v_heads + head) * span.value_width + lane_row;
    // A token's operands are loaded while the one before is computed, and its outputs are summed
    // while the one after is: the only sums waited for are those of p.
    RecurrenceOperands<kPieces> next = tile.Operands(0, row_in_cta, j);
    const auto token = [&](int t) {
      const RecurrenceOperands<kPieces> x = next;
      next = tile.Operands(min(t + 1, kTile - 1), row_in_cta, j);
      float recalled[kPromptLaneRows], read[kPromptLaneRows];
#pragma unroll
      for (int r = 0; r < kPromptLaneRows; ++r) recalled[r] = LaneDot(rows[r], x.k);
#pragma unroll
      for (int r = 0; r < kPromptLaneRows; ++r) read[r] = LaneDot(rows[r], x.q);
#pragma unroll
      for (int distance = kRowLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int r = 0; r < kPromptLaneRows; ++r) {
          recalled[r] += __shfl_xor_sync(0xFFFFFFFFu, recalled[r], distance);
          last.read[r] += __shfl_xor_sync(0xFFFFFFFFu, last.read[r], distance);
        }
      }
      last.Store(j == 0 && last.o != nullptr);
#pragma unroll
      for (int r = 0; r < kPromptLaneRows; ++r) {
        last.read[r] = read[r];
        last.d[r] = DeltaOf(recalled[r], x.v[r], x.gates);
        Learn(x.k, x.gates.decay, last.d[r], &rows[r]);
      }
      last.decay = x.gates.decay;
      last.qk = x.qk;
      last.o = o + t * o_stride;
    };
    int t = 0;
    for (; t + kUnrolled <= tokens; t += kUnrolled) {
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) token(t + u);
    }
#pragma unroll 1
    for (; t < tokens; ++t) token(t);
  }
#pragma unroll
  for (int r = 0; r < kPromptLaneRows; ++r) last.read[r] = SumOverRowLanes(last.read[r]);
  last.Store(j == 0);
#pragma unroll
  for (int r = 0; r < kPromptLaneRows; ++r)
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
  if (p.chunks.tokens != nullptr) {
    const int64_t b = SequenceOfRow(p.sequences, token);
    if (token < StepSequence::AfterChunks(p.sequences, p.chunks, b).first) return;
  }
  const float* o = span.o + item * span.value_width;
  const uint16_t* z = p.z + token * p.z_stride + int64_t{head} * p.v_dim;
  uint16_t* out = p.out + (token * p.v_heads + head) * p.v_dim;
  const float inverse = InverseRms(p.v_dim, p.eps, [&](int i) { return o[i]; });
  for (int i = lane; i < p.v_dim; i += 32)
    out[i] = Bf16FromFloat(
        GatedOutput(o[i], inverse, p.norm_weight[i], Bf16ToFloat(z[i]), p.sigmoid_gate));
}

// ---- Launches ----

int Slices(const GatedDeltaNetParams& p, int lane_rows) {
  const int rows = kStepRows * lane_rows;
  return (p.v_dim + rows - 1) / rows;
}

// Rows of a lane of the step kernel: few while there are multiprocessors to fill, else many, as the
// work that CTAs repeat is less then. 0 where the kernel does not serve.
int StepLaneRows(const GatedDeltaNetParams& p, const CausalConv& conv, int most) {
  const bool serves = conv.pairs && StateRowsAreVectors(p.recurrent_state, p.k_dim);
  if (p.t - p.chunks.total > 4 * p.sequences.count || !serves || CurrentDevice().major < 9)
    return 0;
  const int64_t enough = CurrentDevice().multiprocessors * 3 / 4;
  int fewest = 0;
  for (int rows = most; rows > 0; rows /= 2) {
    const int cluster = p.v_heads / p.k_heads * Slices(p, rows);
    if (cluster < 2 || cluster > kMaxCluster) continue;
    fewest = rows;
    if (p.sequences.count * p.v_heads * Slices(p, rows) >= enough) break;
  }
  return fewest;
}

template <int kPieces, int kLaneRows>
void LaunchStep(const GatedDeltaNetParams& p, const CausalConv& conv, cudaStream_t stream) {
  const int heads_per_key = p.v_heads / p.k_heads;
  const auto slices = static_cast<unsigned>(Slices(p, kLaneRows));
  const dim3 grid(slices, static_cast<unsigned>(p.v_heads),
                  static_cast<unsigned>(p.sequences.count));
  const dim3 cluster(slices, static_cast<unsigned>(heads_per_key));
  LaunchPdlCluster(StepKernel<kPieces, kLaneRows>, grid, dim3(kStepThreads), cluster, 0, stream, p,
                   conv, heads_per_key);
}

template <int kPieces>
void LaunchPrompt(const GatedDeltaNetParams& p, const CausalConv& conv, const PromptSpan& span,
                  cudaStream_t stream) {
  constexpr int kParts = kPieces > 4 ? kPieces / 4 : 1;
  const int value_chunks = (p.v_dim + 127) / 128;
  const int jobs = p.k_heads + p.v_heads * value_chunks;
  const int run_tokens = PrepareRun(span.count, jobs);
  const auto prepare = conv.width == 4 ? PrepareKernel<kParts, 4> : PrepareKernel<kParts, 0>;
  LaunchPdl(prepare,
            dim3((jobs + kPrepareWarps - 1) / kPrepareWarps,
                 static_cast<unsigned>((span.count + run_tokens - 1) / run_tokens)),
            dim3(32 * kPrepareWarps), 0, stream, p, conv, span, value_chunks, run_tokens);
  LaunchPdl(RecurrenceKernel<kPieces>,
            dim3(static_cast<unsigned>(p.v_heads * (span.value_width / kPromptRows)),
                 static_cast<unsigned>(p.sequences.count)),
            dim3(kPromptThreads), 2 * sizeof(RecurrenceTile<kPieces>), stream, p, conv, span);
  LaunchPdl(GatedNormKernel,
            dim3(static_cast<unsigned>((span.count * p.v_heads + kNormWarps - 1) / kNormWarps)),
            dim3(32 * kNormWarps), 0, stream, p, span);
}

// All tokens that are not in chunks.
template <int kPieces>
void Run(const OpContext& context, const GatedDeltaNetParams& p, const CausalConv& conv) {
  constexpr int kMostRows = kPieces <= 4 ? 4 : 2;  // whose state fits in registers
  const int rows = StepLaneRows(p, conv, kMostRows);
  if (rows == 1) return LaunchStep<kPieces, 1>(p, conv, StreamOf(context));
  if (rows == 2) return LaunchStep<kPieces, 2>(p, conv, StreamOf(context));
  if (rows == 4) return LaunchStep<kPieces, kMostRows>(p, conv, StreamOf(context));
  for (int64_t first = 0; first < p.t; first += kSpan)
    LaunchPrompt<kPieces>(p, conv, SpanOf(p, first, context.workspace), StreamOf(context));
}

}  // namespace

int32_t GatedDeltaNetChunk() { return HasDeltaChunks() ? kDeltaChunk : 1; }

size_t GatedDeltaNetWorkspace(int, const GatedDeltaNetParams& sizes) {
  return std::max(SpanOf(sizes, 0, nullptr).Bytes(sizes), DeltaChunksWorkspace(sizes));
}

void GatedDeltaNet(const OpContext& context, const GatedDeltaNetParams& given) {
  GatedDeltaNetParams params = given;
  if (!TakesDeltaChunks(params)) params.chunks = {};
  CausalConv conv = {.x = params.qkv,
                     .stride = params.qkv_stride,
                     .channels = 2 * params.k_heads * params.k_dim + params.v_heads * params.v_dim,
                     .width = params.conv_width,
                     .weight = params.conv_weight,
                     .window = params.conv_state};
  conv.SetAlignment(params.k_dim | params.v_dim);
  if (params.chunks.total > 0) RunDeltaChunks(context, params, conv);
  if (params.chunks.total == params.t) return;
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
