// Warp w takes slices w, w + 8, ... of a row tile; the first one's weights come before the wait.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/router.h"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/norm/sum_of_runs.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 8;  // of a block
constexpr int kVectors = CodeBytes(TileFormat::kBf16) / 512;
// Floats from one token to the next, without bank conflicts.
constexpr int kTokenStride = 20;
constexpr int kMaxRouterSlices = 64;

// A lane's weights of a slice; zeros where it is short.
struct SliceCodes {
  uint4 codes[kSliceTiles][kVectors];

  __device__ __forceinline__ void Load(const std::byte* slice, int tiles, int lane) {
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        codes[i][v] = make_uint4(0, 0, 0, 0);
        if (i < tiles) {
          codes[i][v] =
              __ldg(reinterpret_cast<const uint4*>(slice + (i * kVectors + v) * 512) + lane);
        }
      }
    }
  }
};

// Normed rows in shared memory, so far apart that lanes of neighbouring rows read different banks.
__host__ __device__ constexpr int NormedStride(int d) { return d + 8; }

// A slice's sums, (8 tokens, 16 experts) over the lanes of a warp, into rows of tokens.
__device__ __forceinline__ void StoreSums(const float (&sum)[4], float* partial, int lane) {
  float* const to = partial + lane % 4 * 2 * kTokenStride + lane / 4;
  to[0] = sum[0];
  to[8] = sum[2];
  to[kTokenStride] = sum[1];
  to[kTokenStride + 8] = sum[3];
}

// Lanes whose bit `half` is 0 get sums of `low`, the others of `high`.
__device__ __forceinline__ float AddHalves(float low, float high, int half, int lane) {
  const bool is_high = (lane & half) != 0;
  const float other = __shfl_xor_sync(kAllLanes, is_high ? low : high, half);
  return (is_high ? high : low) + other;
}

// WarpSum of some values, in its order: in lane l that of value l / (32 / kValues). Every step adds
// up two values at once, one in each half of the lanes that it pairs.
template <int kValues>
__device__ __forceinline__ float SumOfEach(const float (&values)[kValues], int lane) {
  float sums[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) sums[i] = values[i];
  int half = 16;
#pragma unroll
  for (int count = kValues / 2; count > 0; count /= 2, half /= 2)
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] = AddHalves(sums[i], sums[i + count], half, lane);
#pragma unroll
  for (; half > 0; half /= 2) sums[0] += __shfl_xor_sync(kAllLanes, sums[0], half);
  return sums[0];
}

// Rows of x (tokens, D), normed, into shared memory and from one block to those who come later. A
// warp takes runs of 256 values, in the order of normalize.cuh.
struct NormX {
  const RouterParams& p;
  const int d;
  const int runs;
  const int warp;
  const int lane;
  const float inverse_d;
  float weight[kVector];  // of the warp's first run: depends on nobody

  __device__ __forceinline__ NormX(const RouterParams& params, int w, int l)
      : p(params),
        d(params.router.k),
        runs((d + kRunValues - 1) / kRunValues),
        warp(w),
        lane(l),
        inverse_d(1.0f / static_cast<float>(d)) {
    if (p.norm.weight != nullptr) LoadWeight(warp);
  }
  __device__ __forceinline__ int column(int run) const { return run * kRunValues + lane * kVector; }
  __device__ __forceinline__ void LoadWeight(int run) {
    LoadF32x8(p.norm.weight + column(run), d - column(run), true, weight);
  }

  // sums: a place per token and run, and one per token. Ends with a barrier.
  __device__ __forceinline__ void Run(int first_token, int tokens, bool publishes, float* sums,
                                      uint16_t* rows) {
    // Code that runs once costs by its length.
    if (tokens <= kTokens / 2) {
      RunInTurns(first_token, tokens, publishes, sums, rows);
    } else {
      RunSideBySide(first_token, tokens, publishes, sums, rows);
    }
  }

 private:
  __device__ __forceinline__ uint4 Normed(uint4 vector, float inverse) const {
    return NormVector(vector, inverse, weight, p.norm.style);
  }

  __device__ __forceinline__ void RunInTurns(int first_token, int tokens, bool publishes,
                                             float* sums, uint16_t* rows) {
    // Values wait where their thread will norm them.
    for (int run = warp; run < runs; run += kWarps) {
      const int at = column(run);
      const uint16_t* x = p.x + first_token * p.x_stride + at;
#pragma unroll 4
      for (int token = 0; token < tokens; ++token, x += p.x_stride) {
        const uint4 vector = LoadBf16x8(x, d - at, true);
        const float sum = WarpSum(AddSquares(vector, 0.0f));
        if (lane == 0) sums[token * runs + run] = sum;
        StoreBf16x8(rows + token * NormedStride(d) + at, vector, d - at, true);
      }
    }
    __syncthreads();
    for (int run = warp; run < runs; run += kWarps) {
      const int at = column(run);
      if (run != warp) LoadWeight(run);
#pragma unroll 1
      for (int token = 0; token < tokens; ++token) {
        const float sum = WarpSum(lane < runs ? sums[token * runs + lane] : 0.0f);
        if (at >= d) continue;
        uint16_t* const place = rows + token * NormedStride(d) + at;
        const uint4 vector =
            NormVector(*reinterpret_cast<const uint4*>(place),
                       InverseRoot(sum, inverse_d, p.norm.eps), weight, p.norm.style);
        *reinterpret_cast<uint4*>(place) = vector;
        if (publishes)
          *reinterpret_cast<uint4*>(p.normed + int64_t{first_token + token} * d + at) = vector;
      }
    }
    __syncthreads();
  }

  // All tokens side by side, so that nothing waits for one after the other.
  __device__ __forceinline__ void RunSideBySide(int first_token, int tokens, bool publishes,
                                                float* sums, uint16_t* rows) {
    float* const inverses = sums + kTokens * runs;
    for (int run = warp; run < runs; run += kWarps) {
      const int at = column(run);
      // Loads under no condition, or they would wait for one another.
      const bool real = at < d;
      const uint16_t* const x = p.x + first_token * p.x_stride + (real ? at : 0);
      uint4 vectors[kTokens];
#pragma unroll
      for (int token = 0; token < kTokens; ++token)
        vectors[token] = *reinterpret_cast<const uint4*>(x + min(token, tokens - 1) * p.x_stride);
      float squares[kTokens];
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        squares[token] = real ? AddSquares(vectors[token], 0.0f) : 0.0f;
        if (real && token < tokens)
          *reinterpret_cast<uint4*>(rows + token * NormedStride(d) + at) = vectors[token];
      }
      const float sum = SumOfEach(squares, lane);
      if (lane % 4 == 0) sums[lane / 4 * runs + run] = sum;
    }
    __syncthreads();
    if (warp < tokens) {
      const float sum = WarpSum(lane < runs ? sums[warp * runs + lane] : 0.0f);
      if (lane == 0) inverses[warp] = InverseRoot(sum, inverse_d, p.norm.eps);
    }
    __syncthreads();
    for (int run = warp; run < runs; run += kWarps) {
      const int at = column(run);
      if (run != warp) LoadWeight(run);
      if (at >= d) continue;
      constexpr int kAtOnce = 4;
#pragma unroll 1
      for (int first = 0; first < tokens; first += kAtOnce) {
        uint4 vectors[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int token = min(first + i, tokens - 1);
          vectors[i] = *reinterpret_cast<const uint4*>(rows + token * NormedStride(d) + at);
          vectors[i] = Normed(vectors[i], inverses[token]);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int token = first + i;
          if (token >= tokens) break;
          *reinterpret_cast<uint4*>(rows + token * NormedStride(d) + at) = vectors[i];
          if (publishes)
            *reinterpret_cast<uint4*>(p.normed + int64_t{first_token + token} * d + at) =
                vectors[i];
        }
      }
    }
    __syncthreads();
  }
};

// Shared memory: slice sums, then with a norm the block's rows.
__global__ void __launch_bounds__(kThreads, 2)
    RouterKernel(const __grid_constant__ RouterParams p) {
  extern __shared__ __align__(16) float partial_sums[];
  auto* const partial = reinterpret_cast<float(*)[kTokens * kTokenStride]>(partial_sums);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool is_gate = static_cast<int>(blockIdx.x) == p.router.row_tiles;
  const WeightTiles& weight = is_gate ? p.gate : p.router;
  const int row_tile = is_gate ? 0 : blockIdx.x;
  const std::byte* const data = weight.data + row_tile * weight.row_tile_bytes;
  const int slices = weight.slices(), stride = weight.slice_stride();
  // What the sum is finished with, of the thread's row.
  const int row = threadIdx.x % kTileRows, column = threadIdx.x / kTileRows;
  const int n = row_tile * kTileRows + row;
  const float scale = n < weight.n ? weight.row_scales[n] : 0.0f;
  const float bias = !is_gate && p.bias != nullptr && n < weight.n ? p.bias[n] : 0.0f;
  SliceCodes codes;
  if (warp < slices) codes.Load(data + warp * stride, weight.tiles_of(warp), lane);
  const bool norms = p.norm.weight != nullptr;
  const int d = p.router.k;
  auto* const rows = reinterpret_cast<uint16_t*>(
      partial_sums + max(p.router.slices(), p.gate.slices()) * (kTokens * kTokenStride));
  NormX norm(p, warp, lane);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  const int first_token = blockIdx.y * kTokens;
  const int tokens = min(kTokens, static_cast<int>(p.t) - first_token);
  const int64_t token = first_token + min(lane / 4, tokens - 1);
  const uint16_t* x =
      (is_gate ? p.x + token * p.x_stride : p.router_x + token * p.router_stride) + lane % 4 * 16;
  if (norms) {
    norm.Run(first_token, tokens, blockIdx.x == 0, partial_sums, rows);
    x = rows + min(lane / 4, tokens - 1) * NormedStride(d) + lane % 4 * 16;
  }
  for (int slice = warp; slice < slices; slice += kWarps) {
    const int tiles = weight.tiles_of(slice);
    if (slice > warp) codes.Load(data + slice * stride, tiles, lane);
    uint4 columns[kSliceTiles][2];
    int x_tile = slice * kSliceTiles;
#pragma unroll 1
    while (x_tile >= weight.x_tiles) x_tile -= weight.x_tiles;
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i) {
      columns[i][0] = columns[i][1] = make_uint4(0, 0, 0, 0);
      if (i < tiles) {
        const auto* at = reinterpret_cast<const uint4*>(x + x_tile * kTileColumns);
        columns[i][0] = at[0];
        columns[i][1] = at[1];
      }
      if (++x_tile == weight.x_tiles) x_tile = 0;
    }
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i) {
      const uint4 first = columns[i][0], second = columns[i][1];
      const uint4(&c)[kVectors] = codes.codes[i];
      ptx::MmaBf16(sum, {c[0].x, c[2].x, c[0].y, c[2].y}, first.x, first.y);
      ptx::MmaBf16(sum, {c[0].z, c[2].z, c[0].w, c[2].w}, first.z, first.w);
      ptx::MmaBf16(sum, {c[1].x, c[3].x, c[1].y, c[3].y}, second.x, second.y);
      ptx::MmaBf16(sum, {c[1].z, c[3].z, c[1].w, c[3].w}, second.z, second.w);
    }
    StoreSums(sum, partial[slice], lane);
  }
  __syncthreads();
  if (column < tokens && n < weight.n) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) sum += partial[s][column * kTokenStride + row];
    sum *= scale;
    if (is_gate) {
      p.gate_logits[first_token + column] = sum;
    } else {
      p.logits[int64_t{first_token + column} * weight.n + n] = sum + bias;
    }
  }
}

// At most: of whole slices alone, and of K of up to 3,072.
constexpr int kOneWarps = 8;
constexpr int kWideWarps = 12;

// A whole slice. x: the lane's columns, in shared memory.
__device__ __forceinline__ void MultiplySlice(const SliceCodes& codes, const uint4* x,
                                              float (&sum)[4]) {
#pragma unroll
  for (int i = 0; i < kSliceTiles; ++i) {
    const uint4 first = x[i * 8], second = x[i * 8 + 1];
    const uint4(&c)[kVectors] = codes.codes[i];
    ptx::MmaBf16(sum, {c[0].x, c[2].x, c[0].y, c[2].y}, first.x, first.y);
    ptx::MmaBf16(sum, {c[0].z, c[2].z, c[0].w, c[2].w}, first.z, first.w);
    ptx::MmaBf16(sum, {c[1].x, c[3].x, c[1].y, c[3].y}, second.x, second.y);
    ptx::MmaBf16(sum, {c[1].z, c[3].z, c[1].w, c[3].w}, second.z, second.w);
  }
}

// One token, normed, a warp per slice: a warp norms the run of x that its slice meets, and nothing
// else. Few steps depend on one another between the wait and the logits.
//
// Of kWideWarps, so many registers would leave no room for the successor's CTA: a slice's last
// k-tile and the norm's weights wait in shared memory.
template <int kMostWarps>
__global__ void __launch_bounds__(kMostWarps * 32, kMostWarps == kOneWarps ? 1 : 2)
    OneRouterKernel(const __grid_constant__ RouterParams p) {
  static_assert(kSliceColumns == kRunValues);
  constexpr bool kWide = kMostWarps > kOneWarps;
  constexpr int kRuns = kWide ? 16 : 8;
  constexpr int kWaiting = kWide ? kMostWarps : 1;
  __shared__ alignas(16) uint16_t rows[kMostWarps][kSliceColumns];
  __shared__ float partials[kMostWarps][kTileRows];
  __shared__ float squares[kRuns];
  __shared__ uint4 last_tiles[kWaiting][kVectors][32];
  __shared__ alignas(16) float norm_weights[kWaiting][kSliceColumns];
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_gate = static_cast<int>(blockIdx.x) == p.router.row_tiles;
  const WeightTiles& weight = is_gate ? p.gate : p.router;
  const int row_tile = is_gate ? 0 : static_cast<int>(blockIdx.x);
  const int slices = static_cast<int>(blockDim.x) / 32;
  const std::byte* const slice =
      weight.data + row_tile * weight.row_tile_bytes + warp * weight.slice_stride();
  const int column = warp * kSliceColumns + lane * kVector;
  const bool real = !kWide || column < p.router.k;
  SliceCodes codes;
  float norm_weight[kVector];
  if constexpr (kWide) {
    const int tiles = weight.tiles_of(warp);
    codes.Load(slice, min(tiles, kSliceTiles - 1), lane);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = ((kSliceTiles - 1) * kVectors + v) * 512 + lane * 16;
      ptx::CopyAsync16OrZero(&last_tiles[warp][v][lane], slice + at, tiles == kSliceTiles);
    }
    // Zeros where there is no x: its rows meet the codes of whole slices.
    float* const norm_to = norm_weights[warp] + lane * kVector;
    ptx::CopyAsync16OrZero(norm_to, p.norm.weight + column, real);
    ptx::CopyAsync16OrZero(norm_to + 4, p.norm.weight + column + 4, real);
    ptx::CommitCopies();
  } else {
    codes.Load(slice, kSliceTiles, lane);
    LoadF32x8(p.norm.weight + column, kVector, true, norm_weight);
  }
  // Of runs that there are not.
  if (warp == 0 && lane >= slices && lane < kRuns) squares[lane] = 0.0f;
  const int n = row_tile * kTileRows + static_cast<int>(threadIdx.x);
  const bool finishes = threadIdx.x < kTileRows && n < weight.n;
  float scale = 0.0f, bias = 0.0f;
  if (finishes) {
    scale = weight.row_scales[n];
    if (!is_gate && p.bias != nullptr) bias = p.bias[n];
  }
  const uint16_t* x = p.x + column;
  uint16_t* normed = blockIdx.x == 0 && p.normed != nullptr ? p.normed + column : nullptr;
  float* logit = (is_gate ? p.gate_logits : p.logits) + n;
  float eps = p.norm.eps, inverse_d = 1.0f / static_cast<float>(p.router.k);
  const NormStyle style = p.norm.style;
  // Parameters come from memory when they are first read: not behind the wait.
  asm volatile("" : "+l"(x), "+l"(normed), "+l"(logit), "+f"(eps), "+f"(inverse_d));
  if (p.before_weights) ptx::LaunchSuccessor();
  ptx::WaitForPredecessor();
  if (!p.before_weights) ptx::LaunchSuccessor();

  uint4 vector = {};
  if (real) vector = __ldcg(reinterpret_cast<const uint4*>(x));
  const float own = WarpSum(AddSquares(vector, 0.0f));
  if (lane == 0) squares[warp] = own;
  __syncthreads();
  if constexpr (kWide) {
    ptx::WaitForCopies<0>();
    LoadF32x8(norm_weights[warp] + lane * kVector, kVector, true, norm_weight);
  }
  vector = NormVector(vector, InverseRoot(SumOfRuns<kRuns>(squares, lane), inverse_d, eps),
                      norm_weight, style);
  *reinterpret_cast<uint4*>(rows[warp] + lane * kVector) = vector;
  if (normed != nullptr && real) *reinterpret_cast<uint4*>(normed) = vector;
  __syncwarp();
  const auto* const x_lane = reinterpret_cast<const uint4*>(rows[warp] + lane % 4 * 16);
  float sum[4] = {};
  if constexpr (kWide) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) codes.codes[kSliceTiles - 1][v] = last_tiles[warp][v][lane];
  }
  MultiplySlice(codes, x_lane, sum);
  if (lane % 4 == 0) {
    partials[warp][lane / 4] = sum[0];
    partials[warp][lane / 4 + 8] = sum[2];
  }
  __syncthreads();
  if (!finishes) return;
  float result = 0.0f;
#pragma unroll 8
  for (int s = 0; s < slices; ++s) result += partials[s][threadIdx.x];
  result *= scale;
  *logit = is_gate ? result : result + bias;
}

// The same for several tokens, kTokens of them a block.
template <int kTokens>
__global__ void __launch_bounds__(kOneWarps * 32, 2)
    FewRouterKernel(const __grid_constant__ RouterParams p) {
  // Lanes of neighbouring rows read from different banks.
  constexpr int kRowStride = kSliceColumns + 8;
  // Values wait where their lane will norm them: there are not registers for all.
  constexpr bool kWait = kTokens > 4;
  __shared__ alignas(16) uint16_t rows[kOneWarps][kTokens][kRowStride];
  __shared__ float partials[kOneWarps][kTokens * kTokenStride];
  __shared__ float squares[kTokens][kOneWarps];
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_gate = static_cast<int>(blockIdx.x) == p.router.row_tiles;
  const WeightTiles& weight = is_gate ? p.gate : p.router;
  const int row_tile = is_gate ? 0 : static_cast<int>(blockIdx.x);
  const int slices = static_cast<int>(blockDim.x) / 32;
  SliceCodes codes;
  codes.Load(weight.data + row_tile * weight.row_tile_bytes + warp * weight.slice_stride(),
             kSliceTiles, lane);
  const int column = warp * kSliceColumns + lane * kVector;
  // Of runs that there are not.
  if (warp == 0 && lane >= slices && lane < kOneWarps)
    for (int token = 0; token < kTokens; ++token) squares[token][lane] = 0.0f;
  float norm_weight[kVector];
  LoadF32x8(p.norm.weight + column, kVector, true, norm_weight);
  const int row = threadIdx.x % kTileRows, n = row_tile * kTileRows + row;
  float scale = 0.0f, bias = 0.0f;
  if (n < weight.n) {
    scale = weight.row_scales[n];
    if (!is_gate && p.bias != nullptr) bias = p.bias[n];
  }
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int tokens = min(kTokens, static_cast<int>(p.t) - first_token);
  int64_t x_stride = p.x_stride;
  const int outputs = is_gate ? 1 : weight.n;
  const uint16_t* x = p.x + first_token * x_stride + column;
  uint16_t* normed =
      blockIdx.x == 0 ? p.normed + int64_t{first_token} * p.router.k + column : nullptr;
  float* logits = (is_gate ? p.gate_logits : p.logits) + int64_t{first_token} * outputs + n;
  float eps = p.norm.eps, inverse_d = 1.0f / static_cast<float>(p.router.k);
  const int d = p.router.k;
  const NormStyle style = p.norm.style;
  // Parameters come from memory when they are first read: not behind the wait.
  asm volatile(""
               : "+l"(x), "+l"(normed), "+l"(logits), "+l"(x_stride), "+f"(eps), "+f"(inverse_d));
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  // Rows past the last token's are copies of it.
  uint4 vectors[kTokens];
#pragma unroll
  for (int token = 0; token < kTokens; ++token)
    vectors[token] = __ldcg(reinterpret_cast<const uint4*>(x + min(token, tokens - 1) * x_stride));
  float own[kTokens];
#pragma unroll
  for (int token = 0; token < kTokens; ++token) {
    own[token] = AddSquares(vectors[token], 0.0f);
    if (kWait) *reinterpret_cast<uint4*>(rows[warp][token] + lane * kVector) = vectors[token];
  }
  const float of_token = SumOfEach(own, lane);
  if (lane % (32 / kTokens) == 0) squares[lane / (32 / kTokens)][warp] = of_token;
  __syncthreads();
  // Eight lanes a token.
  constexpr int kAtOnce = kTokens < 4 ? kTokens : 4;
  float inverses[kTokens / kAtOnce];
#pragma unroll
  for (int i = 0; i < kTokens / kAtOnce; ++i)
    inverses[i] =
        InverseRoot(SumOfRuns<kOneWarps>(squares[i * kAtOnce + lane / kOneWarps % kAtOnce], lane),
                    inverse_d, eps);
#pragma unroll
  for (int token = 0; token < kTokens; ++token) {
    if (token >= tokens) break;
    const float inverse =
        __shfl_sync(kAllLanes, inverses[token / kAtOnce], token % kAtOnce * kOneWarps);
    auto* const place = reinterpret_cast<uint4*>(rows[warp][token] + lane * kVector);
    const uint4 vector = NormVector(kWait ? *place : vectors[token], inverse, norm_weight, style);
    *place = vector;
    if (normed != nullptr) *reinterpret_cast<uint4*>(normed + int64_t{token} * d) = vector;
  }
  __syncwarp();
  const auto* const x_lane =
      reinterpret_cast<const uint4*>(rows[warp][min(lane / 4, tokens - 1)] + lane % 4 * 16);
  float sum[4] = {};
  MultiplySlice(codes, x_lane, sum);
  if (lane % 4 * 2 < kTokens) StoreSums(sum, partials[warp], lane);
  __syncthreads();
  if (n >= weight.n) return;
#pragma unroll 1
  for (int token = static_cast<int>(threadIdx.x) / kTileRows; token < tokens;
       token += static_cast<int>(blockDim.x) / kTileRows) {
    float result = 0.0f;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) result += partials[s][token * kTokenStride + row];
    result *= scale;
    logits[int64_t{token} * outputs] = is_gate ? result : result + bias;
  }
}

bool TakesWholeSlices(const RouterParams& p) {
  const auto whole = [](const WeightTiles& weight) {
    return weight.k % kSliceColumns == 0 && weight.slices() <= kOneWarps &&
           weight.k_tiles == weight.x_tiles;
  };
  return p.norm.weight != nullptr && whole(p.router) &&
         (p.gate.data == nullptr || (whole(p.gate) && p.gate.k == p.router.k));
}

// By kWideWarps at most.
bool FitsOneRouter(const RouterParams& p) {
  const auto takes = [](const WeightTiles& weight) {
    return weight.slices() <= kWideWarps && weight.k_tiles == weight.x_tiles;
  };
  return p.t == 1 && p.norm.weight != nullptr && takes(p.router) &&
         (p.gate.data == nullptr || (takes(p.gate) && p.gate.k == p.router.k));
}

bool Takes(const WeightTiles& weight, const uint16_t* x, int64_t stride) {
  return weight.format == TileFormat::kBf16 && weight.k % kTileColumns == 0 &&
         weight.slices() <= kMaxRouterSlices && stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

size_t SharedBytes(const RouterParams& p) {
  size_t bytes =
      sizeof(float) * kTokens * kTokenStride * std::max(p.router.slices(), p.gate.slices());
  if (p.norm.weight != nullptr) {
    const auto tokens = std::min<int64_t>(p.t, kTokens);
    bytes += sizeof(uint16_t) * tokens * NormedStride(p.router.k);
  }
  return bytes;
}

}  // namespace

bool RouterTakes(const RouterParams& p) {
  if (p.norm.weight != nullptr && (reinterpret_cast<uintptr_t>(p.norm.weight) % 16 != 0 ||
                                   p.x != p.router_x || p.router.k > kMaxFusedNormWidth))
    return false;
  if (SharedBytes(p) > static_cast<size_t>(CurrentDevice().shared_memory_per_block)) return false;
  return p.t <= kMaxRouterTokens && Takes(p.router, p.router_x, p.router_stride) &&
         (p.gate.data == nullptr || Takes(p.gate, p.x, p.x_stride));
}

bool OneRouterTakes(const RouterParams& params) {
  return FitsOneRouter(params) && RouterTakes(params);
}

void Router(const OpContext& context, const RouterParams& params) {
  const int gate = params.gate.data == nullptr ? 0 : 1;
  const dim3 grid(static_cast<unsigned>(params.router.row_tiles + gate),
                  static_cast<unsigned>((params.t + kTokens - 1) / kTokens));
  const unsigned threads = static_cast<unsigned>(params.router.slices()) * 32;
  if (FitsOneRouter(params)) {
    const auto kernel =
        TakesWholeSlices(params) ? OneRouterKernel<kOneWarps> : OneRouterKernel<kWideWarps>;
    ShareMultiprocessor(kernel, 0);
    LaunchPdl(kernel, dim3(grid.x), dim3(threads), 0, StreamOf(context), params);
    return;
  }
  if (TakesWholeSlices(params)) {
    const auto kernel = params.t == 2   ? FewRouterKernel<2>
                        : params.t <= 4 ? FewRouterKernel<4>
                                        : FewRouterKernel<kTokens>;
    PreferSharedMemory(kernel, params.before_few);
    LaunchPdl(kernel, grid, dim3(threads), 0, StreamOf(context), params);
    return;
  }
  if (params.before_few && params.t == 1) {
    ShareMultiprocessor(RouterKernel, static_cast<int64_t>(SharedBytes(params)));
  } else {
    PreferSharedMemory(RouterKernel, params.before_few);
  }
  LaunchPdl(RouterKernel, grid, kThreads, SharedBytes(params), StreamOf(context), params);
}

}  // namespace nibble::kernels::cuda::moe
