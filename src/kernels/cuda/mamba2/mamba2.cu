#include "kernels/cuda/mamba2/mamba2.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
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

// One token of a row: the state moves on, the result is y.
template <int kPieces>
__device__ __forceinline__ float StepRow(const Columns<kPieces>& b, const Columns<kPieces>& c,
                                         HeadStep step, float x, float d, Columns<kPieces>* s) {
  const float x_dt = step.dt * x;
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) (*s)[i] = fmaf(x_dt, b[i], step.decay * (*s)[i]);
  return fmaf(d, x, SumOverRowLanes(LaneDot(*s, c)));
}

__device__ __forceinline__ float GatedRow(float y, uint16_t z) {
  const float gate = Bf16ToFloat(z);
  return y * (gate * Sigmoid(gate));
}

// ---- Few tokens per sequence: one kernel ----

constexpr int kMinRows = 32;  // of a CTA of the step kernel
constexpr int kMaxRows = 128;
constexpr int kMaxCluster = 8;  // the portable limit

// CTA x: slice x % slices of the rows of group x / slices; a cluster holds a group, y is the
// sequence. Shared: B, C (kWidth each), x (rows), u (2, slices * rows).
template <int kPieces>
__global__ void __launch_bounds__(kMaxRows* kThreadsPerRow)
    StepKernel(const __grid_constant__ Mamba2Params p, const __grid_constant__ CausalConv conv,
               int slices) {
  constexpr int kWidth = kRowWidth<kPieces>;
  constexpr int kMinThreads = kMinRows * kThreadsPerRow;
  constexpr int kThreadChannels = (2 * kWidth + kMinRows + kMinThreads - 1) / kMinThreads;
  extern __shared__ float4 shared_pieces[];
  auto* shared = reinterpret_cast<float*>(shared_pieces);

  const Groups groups = Groups::Of(p);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int rows = threads / kThreadsPerRow;
  const int lane = thread % 32, warp = thread / 32, j = lane % kRowLanes;
  const int group = static_cast<int>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x) % slices;
  const int first_row = slice * rows;  // of the group
  const int lane_row = first_row + warp * kWarpRows + lane / kRowLanes * kLaneRows;
  const int64_t group_row = int64_t{group} * groups.rows;
  const float* x_shared = shared + 2 * kWidth;  // of this CTA's rows
  float* u_shared = shared + 2 * kWidth + rows;

  // Everything but the step's activations, before the wait.
  const StepSequence s = StepSequence::At(p.sequences, blockIdx.y);
  float* state = StateAt<float>(p.recurrent_state, s) + group_row * p.state_dim;
  const bool vectors = p.state_dim % 4 == 0 && reinterpret_cast<uintptr_t>(state) % 16 == 0;
  Columns<kPieces> rows_of_state[kLaneRows];
  int head[kLaneRows];
  float rate[kLaneRows], dt_bias[kLaneRows], d[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const int row = min(lane_row + r, groups.rows - 1);  // those beyond the last compute in vain
    const bool old = !s.starts && s.count > 0 && row == lane_row + r;
    rows_of_state[r] = LoadStateRow<kPieces>(state + int64_t{row} * p.state_dim,
                                             old ? p.state_dim : 0, j, vectors);
    head[r] = static_cast<int>((group_row + row) / p.head_dim);
    rate[r] = p.a_log[head[r]], dt_bias[r] = p.dt_bias[head[r]], d[r] = p.d[head[r]];
  }
  // Channels of this thread, by their place in shared memory; -1 where a place stays zero.
  const auto channel_at = [&](int m) -> int64_t {
    const int place = thread + m * threads;
    if (place < 2 * kWidth) {
      const int column = place % kWidth;
      const int64_t first =
          groups.width + (place / kWidth * p.groups + group) * int64_t{p.state_dim};
      return column < p.state_dim ? first + column : -1;
    }
    const int row = first_row + place - 2 * kWidth;
    return place < 2 * kWidth + rows && row < groups.rows ? group_row + row : -1;
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
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) rate[r] = expf(rate[r]);
  const int out_row = first_row + warp * 32 + lane;  // of warps that write outputs
  const bool writes = warp * 32 < rows && out_row < groups.rows;
  const float norm_weight = writes ? p.norm_weight[group_row + out_row] : 0.0f;

  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  for (int64_t t = 0; t < s.count; ++t) {
    const int64_t token = s.first + t;
    const uint16_t* z = p.zxbcdt + token * p.stride;
    float input[kThreadChannels];
#pragma unroll
    for (int m = 0; m < kThreadChannels; ++m) {
      const int64_t channel = channel_at(m);
      input[m] = channel >= 0 ? Bf16ToFloat(ConvInput(conv, s, t, channel)) : 0.0f;
      if (t > 0 && channel >= 0) history[m] = ConvHistory(conv, s, t, channel);
    }
    uint16_t raw_dt[kLaneRows], gate[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      raw_dt[r] = z[groups.width + groups.channels + head[r]];
      gate[r] = z[group_row + min(lane_row + r, groups.rows - 1)];
    }
#pragma unroll
    for (int m = 0; m < kThreadChannels; ++m) {
      const int place = thread + m * threads;
      if (place < 2 * kWidth + rows)
        shared[place] = channel_at(m) >= 0 ? SiluBf16(fmaf(tap[m], input[m], history[m])) : 0.0f;
    }
    HeadStep step[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) step[r] = HeadStepOf(p, raw_dt[r], rate[r], dt_bias[r]);
    __syncthreads();

    const Columns<kPieces> b = LoadSharedRow<kPieces>(shared, j);
    const Columns<kPieces> c = LoadSharedRow<kPieces>(shared + kWidth, j);
    float* u = u_shared + t % 2 * slices * rows;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float y =
          StepRow(b, c, step[r], x_shared[lane_row - first_row + r], d[r], &rows_of_state[r]);
      // Each lane of a row tells one CTA of the group.
      if (j < slices)
        ptx::StoreToPeer(u + lane_row + r, static_cast<uint32_t>(j), GatedRow(y, gate[r]));
    }
    ptx::ClusterArrive();
    if (t + 1 == s.count) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        if (lane_row + r < groups.rows)
          StoreStateRow(rows_of_state[r], state + int64_t{lane_row + r} * p.state_dim, p.state_dim,
                        j, vectors);
    }
    ptx::ClusterWait();
    if (warp * 32 < rows) {
      const float inverse = InverseRms(groups.rows, p.eps, [&](int i) { return u[i]; });
      if (writes)
        p.out[token * groups.width + group_row + out_row] =
            Bf16FromFloat(norm_weight * u[out_row] * inverse);
    }
  }
  if (s.count == 0) return;
  // The cluster has read its window.
#pragma unroll
  for (int m = 0; m < kThreadChannels; ++m) {
    const int64_t channel = channel_at(m);
    const bool of_rows = thread + m * threads >= 2 * kWidth;
    if (channel >= 0 && (of_rows || slice == 0)) MoveWindow(conv, s, channel);
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

// A warp takes kPrepareTokens tokens of up to 128 channels: of B or C of a group, or of a group's
// rows; those of B also turn dt into steps.
template <int kConvWidth>
__global__ void __launch_bounds__(32 * kPrepareWarps)
    PrepareKernel(const __grid_constant__ Mamba2Params p, const __grid_constant__ CausalConv conv,
                  const __grid_constant__ PromptSpan span, int state_chunks, int row_chunks) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const Groups groups = Groups::Of(p);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int job = static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t first = span.first + int64_t{blockIdx.y} * kPrepareTokens;
  const int64_t end = min(first + kPrepareTokens, span.first + span.count);

  const int bc_jobs = 2 * p.groups * state_chunks;
  if (job < bc_jobs) {
    const int chunk = job % state_chunks, group = job / state_chunks % p.groups;
    const int which = job / state_chunks / p.groups;  // 0: B, 1: C
    const int column = chunk * 128 + 4 * lane;
    ConvChannels<kConvWidth> channels(
        conv, groups.width + (which * p.groups + group) * int64_t{p.state_dim} + column,
        max(0, min(4, p.state_dim - column)));
    ForEachToken(
        p.sequences, first, end,
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
  ConvChannels<kConvWidth> channels(conv, int64_t{group} * groups.rows + row,
                                    max(0, min(4, groups.rows - row)));
  ForEachToken(
      p.sequences, first, end,
      [&](const StepSequence& s, int64_t offset) { channels.Rewind(s, offset); },
      [&](int64_t t) {
        float out[4];
        channels.Next(out);
        if (row < span.group_width)
          StoreBf16x4(span.x + ((t - span.first) * p.groups + group) * span.group_width + row, out);
      });
}

// Shared memory of the recurrence: two tiles of these.
template <int kPieces>
struct RecurrenceTile {
  float bc[kTile][2][kRowWidth<kPieces>];
  HeadStep steps[kTile][kPromptRows];  // of the heads that the CTA's rows belong to
  uint16_t x[kTile][kPromptRows];
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
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, j = lane % kRowLanes;
  const int slices = span.group_width / kPromptRows;
  const int group = static_cast<int>(blockIdx.x) / slices;
  const int first_row = static_cast<int>(blockIdx.x) % slices * kPromptRows;  // of the group
  const int row_in_cta = thread / 32 * kWarpRows + lane / kRowLanes * kLaneRows;
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
    constexpr int kBcCopies = 2 * kWidth / 4;
    for (int i = thread; i < tokens * kBcCopies; i += kPromptThreads) {
      const int64_t token = from - span.first + i / kBcCopies;
      ptx::CopyAsync16(&tile.bc[0][0][0] + 4 * i,
                       span.bc + (token * p.groups + group) * 2 * kWidth + i % kBcCopies * 4);
    }
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
  Columns<kPieces> rows[kLaneRows];
  int head[kLaneRows];
  float d[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) {
    const int row = min(lane_row + r, groups.rows - 1);  // those beyond the last compute in vain
    const bool old = !(s.starts && begin == s.first) && row == lane_row + r;
    rows[r] = LoadStateRow<kPieces>(state + int64_t{row} * p.state_dim, old ? p.state_dim : 0, j,
                                    vectors);
    head[r] = static_cast<int>((group_row + row) / p.head_dim) - first_head;
    d[r] = p.d[first_head + head[r]];
  }

  for (int64_t from = begin; from < end; from += kTile) {
    ptx::WaitForCopies<0>();
    __syncthreads();
    if (from + kTile < end) stage(from + kTile);
    const RecurrenceTile<kPieces>& tile = tiles[(from - begin) / kTile % 2];
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - from));
    float* y = span.y + ((from - span.first) * p.groups + group) * span.group_width + lane_row;
    for (int t = 0; t < tokens; ++t) {
      const Columns<kPieces> b = LoadSharedRow<kPieces>(tile.bc[t][0], j);
      const Columns<kPieces> c = LoadSharedRow<kPieces>(tile.bc[t][1], j);
      float out[kLaneRows];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        out[r] = StepRow(b, c, tile.steps[t][head[r]], Bf16ToFloat(tile.x[t][row_in_cta + r]), d[r],
                         &rows[r]);
      static_assert(kLaneRows == 2);
      if (j == 0)
        *reinterpret_cast<float2*>(y + int64_t{t} * p.groups * span.group_width) =
            make_float2(out[0], out[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r)
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

// Rows of a CTA of the step kernel; 0 where a group is too large for a cluster.
int StepRows(const Mamba2Params& p) {
  if (CurrentDevice().major < 9) return 0;
  for (int rows = kMinRows; rows <= kMaxRows; rows *= 2)
    if ((Groups::Of(p).rows + rows - 1) / rows <= kMaxCluster) return rows;
  return 0;
}

template <int kPieces>
void LaunchStep(const Mamba2Params& p, const CausalConv& conv, int rows, cudaStream_t stream) {
  const int slices = (Groups::Of(p).rows + rows - 1) / rows;
  const dim3 grid(static_cast<unsigned>(p.groups * slices),
                  static_cast<unsigned>(p.sequences.count));
  const size_t shared = sizeof(float) * (2 * kRowWidth<kPieces> + rows + 2 * slices * rows);
  LaunchPdlCluster(StepKernel<kPieces>, grid, dim3(rows * kThreadsPerRow),
                   static_cast<unsigned>(slices), shared, stream, p, conv, slices);
}

template <int kPieces>
void LaunchPrompt(const Mamba2Params& p, const CausalConv& conv, const PromptSpan& span,
                  cudaStream_t stream) {
  const int state_chunks = (p.state_dim + 127) / 128;
  const int row_chunks = (Groups::Of(p).rows + 127) / 128;
  const int jobs = p.groups * (2 * state_chunks + row_chunks);
  const auto prepare = conv.width == 4 ? PrepareKernel<4> : PrepareKernel<0>;
  LaunchPdl(prepare,
            dim3((jobs + kPrepareWarps - 1) / kPrepareWarps,
                 static_cast<unsigned>((span.count + kPrepareTokens - 1) / kPrepareTokens)),
            dim3(32 * kPrepareWarps), 0, stream, p, conv, span, state_chunks, row_chunks);
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
  const int rows = StepRows(p);
  if (rows > 0 && p.t <= 4 * p.sequences.count)
    return LaunchStep<kPieces>(p, conv, rows, StreamOf(context));
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
  conv.vectors = Aligned(conv.x, 8) && conv.stride % 4 == 0 && groups.rows % 4 == 0 &&
                 params.state_dim % 4 == 0;
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
