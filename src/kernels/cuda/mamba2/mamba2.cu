#include "kernels/cuda/mamba2/mamba2.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/predicated.cuh"
#include "kernels/cuda/recurrent/causal_conv.cuh"
#include "kernels/cuda/recurrent/state_rows.cuh"

namespace nibble::kernels::cuda {
namespace {

// The rows of a group's heads stand below one another: they share B and C, and the norm.
struct Groups {
  int32_t rows = 0;      // H P / G
  int32_t width = 0;     // H P
  int32_t channels = 0;  // of the convolution

  __host__ __device__ static Groups Of(const Mamba2Params& p) {
    Groups g;
    g.width = p.heads * p.head_dim;
    g.rows = g.width / p.groups;
    g.channels = g.width + 2 * p.groups * p.state_dim;
    return g;
  }
};

// ---- The arithmetic of one token, shared by both routes ----

struct HeadStep {
  float dt;     // clamped
  float decay;  // exp(-exp(a_log) dt)
};

__device__ __forceinline__ HeadStep HeadStepOf(const Mamba2Params& p, uint16_t raw, float rate,
                                               float dt_bias) {
  HeadStep step;
  step.dt = fminf(fmaxf(Softplus(Bf16ToFloat(raw) + dt_bias), p.dt_min), p.dt_max);
  step.decay = expf(-rate * step.dt);
  return step;
}

// The state of a row moves on by a token.
template <int kPieces>
__device__ __forceinline__ void MoveRow(const Columns<kPieces>& b, HeadStep step, float x,
                                        Columns<kPieces>* s) {
  const float x_dt = step.dt * x;
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) (*s)[i] = fmaf(x_dt, b[i], step.decay * (*s)[i]);
}

// y from what the state after the token reads at C.
__device__ __forceinline__ float OutputOf(float read, float x, float d) { return fmaf(d, x, read); }

__device__ __forceinline__ float GatedRow(float y, uint16_t z) {
  const float gate = Bf16ToFloat(z);
  return y * (gate * Sigmoid(gate));
}

// ---- Few tokens per sequence: one kernel ----

constexpr int kStepThreads = 256;
constexpr int kStepRows = kStepThreads / kRowLanes;  // times those of a lane: of a CTA
constexpr int kMaxCluster = 8;                       // the portable limit

// A CTA takes slice x of the rows of group y of sequence z; a cluster is a group. state_dim is
// even, head_dim a multiple of kLaneRows, rows of the state are vectors.
template <int kPieces, int kLaneRows>
__global__ void __launch_bounds__(kStepThreads, kLaneRows == 1 ? 3 : 2)
    StepKernel(const __grid_constant__ Mamba2Params p, const __grid_constant__ CausalConv conv) {
#if __CUDA_ARCH__ >= 900
  constexpr int kWidth = kRowWidth<kPieces>;
  constexpr int kCtaRows = kStepRows * kLaneRows;
  constexpr int kPairs = ((2 * kWidth + kCtaRows) / 2 + kStepThreads - 1) / kStepThreads;
  __shared__ __align__(16) float mixed[2 * kWidth + kCtaRows];        // B, C, x of this CTA's rows
  __shared__ __align__(16) float outputs[2][kMaxCluster * kCtaRows];  // u of the group, by parity
  __shared__ ptx::BytesBarrier outputs_came[2];

  const Groups groups = Groups::Of(p);
  const int thread = static_cast<int>(threadIdx.x), j = thread % kRowLanes;
  const int slices = static_cast<int>(gridDim.x), group = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.x) * kCtaRows;  // of the group
  const int cta_row = thread / kRowLanes * kLaneRows;             // the first of this lane's
  const int row = first_row + cta_row, group_row = group * groups.rows;

  // Everything but the step's activations, before the wait.
  if (thread < 2) outputs_came[thread].Init();
  const StepSequence s = StepSequence::At(p.sequences, blockIdx.z);
  float* state = StateAt<float>(p.recurrent_state, s) + int64_t{group_row + row} * p.state_dim;
  Columns<kPieces> rows[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const bool old = !s.starts && s.count > 0 && row < groups.rows;
    rows[r] = LoadStateRow<kPieces>(state + r * p.state_dim, old ? p.state_dim : 0, j, true);
  }
  ConvPair channels[kPairs];  // by their place in `mixed`
#pragma unroll
  for (int m = 0; m < kPairs; ++m) {
    const int place = 2 * (thread + m * kStepThreads);
    const int column = place % kWidth, of_group = first_row + place - 2 * kWidth;
    int channel = -1;
    if (place < 2 * kWidth) {
      if (column < p.state_dim)
        channel = groups.width + (place / kWidth * p.groups + group) * p.state_dim + column;
    } else if (place < 2 * kWidth + kCtaRows && of_group < groups.rows) {
      channel = group_row + of_group;
    }
    channels[m].Begin(conv, s, s.count > 0 ? channel : -1);
  }
  const int model_row = group_row + min(row, groups.rows - kLaneRows);
  const int head = model_row / p.head_dim;  // of all rows of a lane
  const float rate = expf(p.a_log[head]), dt_bias = p.dt_bias[head], d = p.d[head];
  const int out_row = first_row + thread;  // of threads that write outputs
  const bool writes = thread < kCtaRows && out_row < groups.rows;
  const float norm_weight = writes ? p.norm_weight[group_row + out_row] : 0.0f;
  ptx::SyncCluster();  // its barriers are ready, its windows are read

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
#pragma unroll 1
  for (int64_t t = 0; t < s.count; ++t) {
    const int64_t token = s.first + t;
    uint32_t inputs[kPairs];
#pragma unroll
    for (int m = 0; m < kPairs; ++m) inputs[m] = channels[m].LoadInput(conv, token);
    const uint16_t* z = p.zxbcdt + token * p.stride;
    const uint16_t raw_dt = z[groups.width + groups.channels + head];
    uint16_t gate[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) gate[r] = z[model_row + r];
    if (t > 0) __syncthreads();  // the token before has been read
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int place = 2 * (thread + m * kStepThreads);
      const float2 out = channels[m].Next(inputs[m]);
      if (place < 2 * kWidth + kCtaRows) *reinterpret_cast<float2*>(mixed + place) = out;
    }
    const HeadStep step = HeadStepOf(p, raw_dt, rate, dt_bias);
    __syncthreads();

    const Columns<kPieces> b = LoadSharedRow<kPieces>(mixed, j);
    const float* x = mixed + 2 * kWidth + cta_row;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) MoveRow(b, step, x[r], &rows[r]);
    asm volatile("" ::: "memory");  // C is loaded when B's registers are free
    const Columns<kPieces> c = LoadSharedRow<kPieces>(mixed + kWidth, j);
    float u[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r)
      u[r] = GatedRow(OutputOf(SumOverRowLanes(LaneDot(rows[r], c)), x[r], d), gate[r]);
    // Each lane of a row tells one CTA of the group.
    ptx::BytesBarrier& came = outputs_came[t % 2];
    float* group_u = outputs[t % 2];
    if (j < slices) came.Send(group_u + row, static_cast<uint32_t>(j), u);
    if (thread == 0) came.Expect(static_cast<uint32_t>(slices * kCtaRows * sizeof(float)));
    if (t + 1 == s.count) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        if (row < groups.rows)
          StoreStateRow(rows[r], state + r * p.state_dim, p.state_dim, j, true);
    }
    if (thread < kCtaRows) {
      came.Wait(static_cast<uint32_t>(t / 2 % 2));
      const float inverse = InverseRms(groups.rows, p.eps, [&](int i) { return group_u[i]; });
      if (writes)
        p.out[token * groups.width + group_row + out_row] =
            Bf16FromFloat(norm_weight * group_u[out_row] * inverse);
    }
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const bool of_rows = 2 * (thread + m * kStepThreads) >= 2 * kWidth;
      if (t + 1 < s.count) {
        channels[m].Sum(conv);
      } else if (of_rows || first_row == 0) {
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
constexpr int kUnrolled = 8;     // of them computed as straight code
constexpr int64_t kSpan = 2048;  // tokens that the workspace holds
constexpr int kPrepareWarps = 4;

// Tokens [first, first + count) of a step on their way through the workspace.
struct PromptSpan {
  int64_t first = 0;
  int64_t count = 0;
  int32_t state_width = 0;    // N, padded
  int32_t group_width = 0;    // rows of a group, padded to those of CTAs
  float* bc = nullptr;        // (count, G, 2, state_width)
  float* y = nullptr;         // (count, G, group_width)
  HeadStep* steps = nullptr;  // (count, H)
  uint16_t* x = nullptr;      // (count, G, group_width)

  size_t Bytes(const Mamba2Params& p) const {
    return static_cast<size_t>(count) *
           (int64_t{p.groups} * (2 * state_width * 4 + group_width * 6) + int64_t{p.heads} * 8);
  }
};

PromptSpan SpanOf(const Mamba2Params& p, int64_t first, std::byte* workspace) {
  PromptSpan span;
  span.first = first;
  span.count = std::min(kSpan, p.t - first);
  span.state_width = kRowWidth<1> * PiecesOf(p.state_dim);
  span.group_width = (Groups::Of(p).rows + kPromptRows - 1) / kPromptRows * kPromptRows;
  span.bc = reinterpret_cast<float*>(workspace);
  span.y = span.bc + span.count * p.groups * 2 * span.state_width;
  span.x = reinterpret_cast<uint16_t*>(span.y + span.count * p.groups * span.group_width);
  span.steps = reinterpret_cast<HeadStep*>(span.x + span.count * p.groups * span.group_width);
  return span;
}

// A warp takes `run_tokens` tokens of up to 128 channels: of B or C of a group, or of a group's
// rows; those of B also turn dt into steps.
template <int kConvWidth>
__global__ void __launch_bounds__(32 * kPrepareWarps)
    PrepareKernel(const __grid_constant__ Mamba2Params p, const __grid_constant__ CausalConv conv,
                  const __grid_constant__ PromptSpan span, int state_chunks, int row_chunks,
                  int run_tokens) {
  // The recurrence is not launched early: its CTAs should find all multiprocessors empty.
  ptx::WaitForPredecessor();
  const Groups groups = Groups::Of(p);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int job = static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t first = span.first + int64_t{blockIdx.y} * run_tokens;
  const int64_t end = min(first + run_tokens, span.first + span.count);

  const int bc_jobs = 2 * p.groups * state_chunks;
  if (job < bc_jobs) {
    const int chunk = job % state_chunks, group = job / state_chunks % p.groups;
    const int which = job / state_chunks / p.groups;  // 0: B, 1: C
    const int column = chunk * 128 + 4 * lane;
    ConvChannels<kConvWidth> channels(
        conv, groups.width + (which * p.groups + group) * int64_t{p.state_dim} + column,
        p.state_dim - column);
    ForEachToken(
        p.sequences, {}, first, end,
        [&](const StepSequence& s, int64_t offset) { channels.Rewind(s, offset); },
        [&](int64_t t) {
          float out[4];
          channels.Next(out);
          float* to =
              span.bc + (((t - span.first) * p.groups + group) * 2 + which) * span.state_width;
          if (column < span.state_width)
            *reinterpret_cast<float4*>(to + column) = make_float4(out[0], out[1], out[2], out[3]);
          if (which != 0 || chunk != 0) return;
          const int heads = p.heads / p.groups;
          for (int h = group * heads + lane; h < (group + 1) * heads; h += 32)
            span.steps[(t - span.first) * p.heads + h] =
                HeadStepOf(p, p.zxbcdt[t * p.stride + groups.width + groups.channels + h],
                           expf(p.a_log[h]), p.dt_bias[h]);
        });
    return;
  }

  job -= bc_jobs;
  const int group = job / row_chunks;
  const int row = job % row_chunks * 128 + 4 * lane;
  if (group >= p.groups) return;
  ConvChannels<kConvWidth> channels(conv, int64_t{group} * groups.rows + row, groups.rows - row);
  ForEachToken(
      p.sequences, {}, first, end,
      [&](const StepSequence& s, int64_t offset) { channels.Rewind(s, offset); },
      [&](int64_t t) {
        float out[4];
        channels.Next(out);
        if (row < span.group_width)
          StoreBf16x4(span.x + ((t - span.first) * p.groups + group) * span.group_width + row, out);
      });
}

// What a lane needs of a token.
template <int kPieces>
struct RecurrenceOperands {
  Columns<kPieces> b;
  Columns<kPieces> c;
  HeadStep steps[kPromptLaneRows];
  float x[kPromptLaneRows];
};

// Shared memory of the recurrence: two tiles of these.
template <int kPieces>
struct RecurrenceTile {
  float bc[kTile][2][kRowWidth<kPieces>];
  HeadStep steps[kTile][kPromptRows];  // of the heads that the CTA's rows belong to
  uint16_t x[kTile][kPromptRows];

  __device__ __forceinline__ RecurrenceOperands<kPieces> Operands(
      int t, int row, const int (&head)[kPromptLaneRows], int j) const {
    RecurrenceOperands<kPieces> operands;
    operands.b = LoadSharedRow<kPieces>(bc[t][0], j);
    operands.c = LoadSharedRow<kPieces>(bc[t][1], j);
    static_assert(kPromptLaneRows == 2);
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(&x[t][row]);
    operands.x[0] = __uint_as_float(pair << 16);
    operands.x[1] = __uint_as_float(pair & 0xFFFF0000u);
#pragma unroll
    for (int r = 0; r < kPromptLaneRows; ++r) operands.steps[r] = steps[t][head[r]];
    return operands;
  }
};

// The outputs of a lane's rows at the token before, on their way to being summed.
struct PendingOutput {
  float* y = nullptr;
  float read[kPromptLaneRows] = {};
  float x[kPromptLaneRows] = {};

  __device__ __forceinline__ void Store(bool wanted, const float (&d)[kPromptLaneRows]) const {
    static_assert(kPromptLaneRows == 2);
    ptx::StorePairIf(wanted, y, OutputOf(read[0], x[0], d[0]), OutputOf(read[1], x[1], d[1]));
  }
};

// CTA x: kPromptRows rows of a group; y: the sequence. Then the convolution's windows move.
template <int kPieces>
__global__ void __launch_bounds__(kPromptThreads)
    RecurrenceKernel(const __grid_constant__ Mamba2Params p,
                     const __grid_constant__ CausalConv conv,
                     const __grid_constant__ PromptSpan span) {
  constexpr int kWidth = kRowWidth<kPieces>;
  extern __shared__ float4 shared_pieces[];
  auto* tiles = reinterpret_cast<RecurrenceTile<kPieces>*>(shared_pieces);
  const Groups groups = Groups::Of(p);
  const int thread = static_cast<int>(threadIdx.x), j = thread % kRowLanes;
  const int slices = span.group_width / kPromptRows;
  const int group = static_cast<int>(blockIdx.x) / slices;
  const int first_row = static_cast<int>(blockIdx.x) % slices * kPromptRows;  // of the group
  const int row_in_cta = thread / kRowLanes * kPromptLaneRows;
  const int lane_row = first_row + row_in_cta;
  const int64_t group_row = int64_t{group} * groups.rows;
  const int first_head = static_cast<int>((group_row + first_row) / p.head_dim);
  const int last_row = min(first_row + kPromptRows, groups.rows) - 1;
  const int heads = static_cast<int>((group_row + last_row) / p.head_dim) - first_head + 1;

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const StepSequence s = StepSequence::At(p.sequences, blockIdx.y);
  const int64_t begin = max(s.first, span.first);
  const int64_t end = min(s.first + s.count, span.first + span.count);
  if (begin >= end) return;

  const auto stage = [&](int64_t from) {
    RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    CopyRowsAsync<kPromptThreads, 2 * kWidth, kTile>(
        &tile.bc[0][0][0], span.bc + ((from - span.first) * p.groups + group) * 2 * kWidth,
        p.groups * 2 * kWidth, tokens);
    constexpr int kRowCopies = kPromptRows / 8;
    if (thread < tokens * kRowCopies) {
      const int64_t token = from - span.first + thread / kRowCopies;
      ptx::CopyAsync16(&tile.x[0][0] + 8 * thread,
                       span.x + (token * p.groups + group) * span.group_width + first_row +
                           thread % kRowCopies * 8);
    }
    for (int i = thread; i < tokens * heads; i += kPromptThreads)
      ptx::CopyAsync8(
          &tile.steps[i / heads][i % heads],
          span.steps + (from - span.first + i / heads) * p.heads + first_head + i % heads);
    ptx::CommitCopies();
  };
  static_assert(kTile * kPromptRows / 8 <= kPromptThreads);
  stage(begin);

  float* state = StateAt<float>(p.recurrent_state, s) + group_row * p.state_dim;
  const bool vectors = p.state_dim % 4 == 0 && reinterpret_cast<uintptr_t>(state) % 16 == 0;
  Columns<kPieces> rows[kPromptLaneRows];
  int head[kPromptLaneRows];
  float d[kPromptLaneRows];
#pragma unroll
  for (int r = 0; r < kPromptLaneRows; ++r) {
    const int row = min(lane_row + r, groups.rows - 1);  // those beyond the last compute in vain
    const bool old = !(s.starts && begin == s.first) && row == lane_row + r;
    rows[r] = LoadStateRow<kPieces>(state + int64_t{row} * p.state_dim, old ? p.state_dim : 0, j,
                                    vectors);
    head[r] = static_cast<int>((group_row + row) / p.head_dim) - first_head;
    d[r] = p.d[first_head + head[r]];
  }

  PendingOutput last;
  const int y_stride = p.groups * span.group_width;
  for (int64_t from = begin; from < end; from += kTile) {
    ptx::WaitForCopies<0>();
    __syncthreads();
    if (from + kTile < end) stage(from + kTile);
    const RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    float* y = span.y + ((from - span.first) * p.groups + group) * span.group_width + lane_row;
    // A token's operands are loaded while the one before is computed, and its outputs are summed
    // while the one after is.
    RecurrenceOperands<kPieces> next = tile.Operands(0, row_in_cta, head, j);
    const auto token = [&](int t) {
      const RecurrenceOperands<kPieces> now = next;
      next = tile.Operands(min(t + 1, kTile - 1), row_in_cta, head, j);
#pragma unroll
      for (int r = 0; r < kPromptLaneRows; ++r) last.read[r] = SumOverRowLanes(last.read[r]);
      last.Store(j == 0 && last.y != nullptr, d);
#pragma unroll
      for (int r = 0; r < kPromptLaneRows; ++r) {
        MoveRow(now.b, now.steps[r], now.x[r], &rows[r]);
        last.read[r] = LaneDot(rows[r], now.c);
        last.x[r] = now.x[r];
      }
      last.y = y + t * y_stride;
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
  last.Store(j == 0, d);
#pragma unroll
  for (int r = 0; r < kPromptLaneRows; ++r)
    if (lane_row + r < groups.rows)
      StoreStateRow(rows[r], state + int64_t{lane_row + r} * p.state_dim, p.state_dim, j, vectors);

  if (end < s.first + s.count) return;
  if (thread < kPromptRows && first_row + thread < groups.rows)
    MoveWindow(conv, s, group_row + first_row + thread);
  if (first_row != 0) return;
  for (int c = thread; c < p.state_dim; c += kPromptThreads) {
    MoveWindow(conv, s, groups.width + int64_t{group} * p.state_dim + c);
    MoveWindow(conv, s, groups.width + int64_t{p.groups + group} * p.state_dim + c);
  }
}

constexpr int kNormWarps = 8;

// A warp per token and group.
__global__ void __launch_bounds__(32 * kNormWarps)
    GatedNormKernel(const __grid_constant__ Mamba2Params p,
                    const __grid_constant__ PromptSpan span) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const Groups groups = Groups::Of(p);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  if (item >= span.count * p.groups) return;
  const int64_t token = span.first + item / p.groups;
  const int64_t group_row = item % p.groups * groups.rows;
  const float* y = span.y + item * span.group_width;
  const uint16_t* z = p.zxbcdt + token * p.stride + group_row;
  uint16_t* out = p.out + token * groups.width + group_row;
  const auto u = [&](int i) { return GatedRow(y[i], z[i]); };
  const float inverse = InverseRms(groups.rows, p.eps, u);
  for (int i = lane; i < groups.rows; i += 32)
    out[i] = Bf16FromFloat(p.norm_weight[group_row + i] * u(i) * inverse);
}

// ---- Launches ----

int Slices(const Mamba2Params& p, int lane_rows) {
  const int rows = kStepRows * lane_rows;
  return (Groups::Of(p).rows + rows - 1) / rows;
}

// Rows of a lane of the step kernel: few while there are multiprocessors to fill, else many, as the
// work that CTAs repeat is less then. 0 where the kernel does not serve.
int StepLaneRows(const Mamba2Params& p, const CausalConv& conv, int most) {
  const bool serves = conv.pairs && StateRowsAreVectors(p.recurrent_state, p.state_dim);
  if (p.t > 4 * p.sequences.count || !serves || CurrentDevice().major < 9) return 0;
  const int64_t enough = CurrentDevice().multiprocessors * 3 / 4;
  int fewest = 0;
  for (int rows = most; rows > 0; rows /= 2) {
    const int cluster = Slices(p, rows);
    if (cluster < 2 || cluster > kMaxCluster || p.head_dim % rows != 0) continue;
    fewest = rows;
    if (p.sequences.count * p.groups * cluster >= enough) break;
  }
  return fewest;
}

template <int kPieces, int kLaneRows>
void LaunchStep(const Mamba2Params& p, const CausalConv& conv, cudaStream_t stream) {
  const auto slices = static_cast<unsigned>(Slices(p, kLaneRows));
  const dim3 grid(slices, static_cast<unsigned>(p.groups),
                  static_cast<unsigned>(p.sequences.count));
  LaunchPdlCluster(StepKernel<kPieces, kLaneRows>, grid, dim3(kStepThreads), dim3(slices), 0,
                   stream, p, conv);
}

template <int kPieces>
void LaunchPrompt(const Mamba2Params& p, const CausalConv& conv, const PromptSpan& span,
                  cudaStream_t stream) {
  const int state_chunks = (p.state_dim + 127) / 128;
  const int row_chunks = (Groups::Of(p).rows + 127) / 128;
  const int jobs = p.groups * (2 * state_chunks + row_chunks);
  const int run_tokens = PrepareRun(span.count, jobs);
  const auto prepare = conv.width == 4 ? PrepareKernel<4> : PrepareKernel<0>;
  LaunchPdl(prepare,
            dim3((jobs + kPrepareWarps - 1) / kPrepareWarps,
                 static_cast<unsigned>((span.count + run_tokens - 1) / run_tokens)),
            dim3(32 * kPrepareWarps), 0, stream, p, conv, span, state_chunks, row_chunks,
            run_tokens);
  LaunchPdl(RecurrenceKernel<kPieces>,
            dim3(static_cast<unsigned>(p.groups * (span.group_width / kPromptRows)),
                 static_cast<unsigned>(p.sequences.count)),
            dim3(kPromptThreads), 2 * sizeof(RecurrenceTile<kPieces>), stream, p, conv, span);
  LaunchPdl(GatedNormKernel,
            dim3(static_cast<unsigned>((span.count * p.groups + kNormWarps - 1) / kNormWarps)),
            dim3(32 * kNormWarps), 0, stream, p, span);
}

template <int kPieces>
void Run(const OpContext& context, const Mamba2Params& p, const CausalConv& conv) {
  constexpr int kMostRows = kPieces <= 4 ? 4 : 2;  // whose state fits in registers
  const int rows = StepLaneRows(p, conv, kMostRows);
  if (rows == 1) return LaunchStep<kPieces, 1>(p, conv, StreamOf(context));
  if (rows == 2) return LaunchStep<kPieces, 2>(p, conv, StreamOf(context));
  if (rows == 4) return LaunchStep<kPieces, kMostRows>(p, conv, StreamOf(context));
  for (int64_t first = 0; first < p.t; first += kSpan)
    LaunchPrompt<kPieces>(p, conv, SpanOf(p, first, context.workspace), StreamOf(context));
}

}  // namespace

size_t Mamba2Workspace(int, const Mamba2Params& sizes) {
  return SpanOf(sizes, 0, nullptr).Bytes(sizes);
}

void Mamba2(const OpContext& context, const Mamba2Params& params) {
  const Groups groups = Groups::Of(params);
  CausalConv conv = {.x = params.zxbcdt + groups.width,
                     .stride = params.stride,
                     .channels = groups.channels,
                     .width = params.conv_width,
                     .weight = params.conv_weight,
                     .bias = params.conv_bias,
                     .window = params.conv_state};
  conv.SetAlignment(groups.rows | params.state_dim);
  switch (PiecesOf(params.state_dim)) {
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
