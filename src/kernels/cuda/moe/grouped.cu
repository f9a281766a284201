#include "kernels/cuda/moe/grouped.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/with_format.h"
#include "kernels/cuda/prefill/divisor.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/prefill/tokens.h"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {

// FC1 (side 0) over tokens of x, FC2 (side 1) over rows of h.
struct GroupedProblem {
  static constexpr bool kGathers = true;

  WeightTiles weight;  // sizes
  const RowBlock* blocks = nullptr;
  const int32_t* block_count = nullptr;
  const int32_t* row_token = nullptr;  // null: rows as they are
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  TileOutput out;
  int side = 0;
  int first_row_tile = 0;
  Divisor row_blocks;
  int tile_row_tiles = 0;

  __device__ __forceinline__ const WeightTiles& like() const { return weight; }
  __device__ __forceinline__ const TileOutput& output() const { return out; }
  __device__ __forceinline__ int count() const { return *block_count * row_blocks.divisor(); }
  __device__ __forceinline__ TileWork At(int index) const {
    const int number = row_blocks.Of(index);
    const int row_block = index - number * row_blocks.divisor();
    const RowBlock& block = blocks[number];
    return {block.weight[side], block.row_scales[side],
            block.bias[side],   first_row_tile + row_block * tile_row_tiles,
            block.first_row,    block.rows};
  }
  __device__ __forceinline__ const std::byte* rows() const {
    return reinterpret_cast<const std::byte*>(x);
  }
  __device__ __forceinline__ int64_t row_bytes() const { return x_stride * 2; }
  __device__ __forceinline__ uint32_t row_of(int row) const {
    return row_token == nullptr ? row : row_token[row];
  }
};

namespace {

// Fewer tokens, or rows per expert, are the business of the kernels that stream weights.
constexpr int64_t kLeastTokens = 65;
constexpr int64_t kLeastRows = 4;
// FC2's outputs that wait in the workspace for their sum, at least.
constexpr int64_t kOutputBytes = int64_t{48} << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t value, int64_t unit) { return CeilDiv(value, unit) * unit; }

// ---- Which blocks of rows there are

struct BlockLists {
  int32_t* counts = nullptr;  // (2): routed, shared
  RowBlock* routed = nullptr;
  RowBlock* shared = nullptr;
};

constexpr int kListThreads = 1024;
static_assert(kListThreads >= kMaxExperts);

__device__ void WriteBlock(const Expert& expert, int first_row, int rows, RowBlock* block) {
  *block = {{expert.gate.data, expert.down.data},
            {expert.gate_scales, expert.down_scales},
            {expert.gate_bias, expert.down_bias},
            first_row,
            rows};
}

// Every thread takes one expert; then all of them the shared one.
__global__ void __launch_bounds__(kListThreads)
    ListBlocksKernel(const __grid_constant__ GroupedParams p, BlockLists lists, int block_rows) {
  __shared__ int warp_sums[kListThreads / 32];
  const int e = threadIdx.x, lane = e % 32, warp = e / 32;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  int first_row = 0, rows = 0;
  if (e < p.expert_count) {
    first_row = p.lists.first_row[e];
    rows = p.lists.first_row[e + 1] - first_row;
  }
  const int blocks = (rows + block_rows - 1) / block_rows;
  int sum = blocks;  // of this and earlier threads
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += warp_sums[w];
  for (int b = 0; b < blocks; ++b) {
    WriteBlock(p.experts[e], first_row + b * block_rows, min(block_rows, rows - b * block_rows),
               lists.routed + sum - blocks + b);
  }
  if (e == kListThreads - 1) lists.counts[0] = sum;
  if (p.shared_f == 0) return;
  const int shared_first = p.lists.first_row[p.expert_count];
  const int tokens = static_cast<int>(p.t);
  const int shared_blocks = (tokens + block_rows - 1) / block_rows;
  for (int b = e; b < shared_blocks; b += kListThreads) {
    WriteBlock(p.shared, shared_first + b * block_rows, min(block_rows, tokens - b * block_rows),
               lists.shared + b);
  }
  if (e == 0) lists.counts[1] = shared_blocks;
}

// ---- The products

template <typename Shape>
void LaunchShape(GroupedProblem problem, int rows, void* stream) {
  problem.tile_row_tiles = Shape::kRowTiles;
  problem.row_blocks = Divisor(static_cast<int>(CeilDiv(rows, Shape::kRows)));
  LaunchPdl(TilesKernel<Shape, GroupedProblem>, CurrentDevice().multiprocessors, Shape::kThreads,
            Shape::kAllocatedBytes, static_cast<cudaStream_t>(stream), problem);
}

template <int kRowParts, int kTokens>
void LaunchFormat(const GroupedProblem& problem, int rows, void* stream) {
  WithFormat(problem.weight.format, [&]<TileFormat kFormat>() {
    LaunchShape<TileShape<kFormat, kRowParts, 1, kTokens>>(problem, rows, stream);
  });
}

// Whether there are tiles of 96 rows. A shared expert of another format than the routed ones takes
// their blocks in tiles of 128.
bool Has96Rows(TileFormat format) {
  return format == TileFormat::kNvfp4 || format == TileFormat::kMxfp4;
}

void LaunchProduct(const GroupedProblem& problem, int rows, int block_rows, void* stream) {
  if (block_rows == 64) {
    LaunchFormat<3, 64>(problem, rows, stream);
  } else if (block_rows == 96 && Has96Rows(problem.weight.format)) {
    if (problem.weight.format == TileFormat::kNvfp4)
      LaunchShape<TileShape<TileFormat::kNvfp4, 3, 1, 96>>(problem, rows, stream);
    else
      LaunchShape<TileShape<TileFormat::kMxfp4, 3, 1, 96>>(problem, rows, stream);
  } else {
    LaunchFormat<2, 128>(problem, rows, stream);
  }
}

// ---- Between the products

struct ActivateParams {
  const int32_t* first_row = nullptr;
  const int32_t* end_row = nullptr;
  const uint16_t* gate_up = nullptr;
  int64_t gate_up_stride = 0;
  uint16_t* h = nullptr;  // permuted, with zeros up to a multiple of 64
  int64_t h_stride = 0;
  int32_t f = 0;
  Activation activation;
};

constexpr int kActivateThreads = 128;

// A thread makes one chunk of 8 columns of a row (tokens.h). Blocks past the rows have none.
__global__ void __launch_bounds__(kActivateThreads) ActivateKernel(const ActivateParams p) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t row = *p.first_row + static_cast<int64_t>(blockIdx.x);
  const int chunk = blockIdx.y * kActivateThreads + threadIdx.x;
  const int chunks = (p.f + kTileColumns - 1) / kTileColumns * 8;
  if (row >= *p.end_row || chunk >= chunks) return;
  const uint16_t* gate = p.gate_up + row * p.gate_up_stride;
  const bool gated = p.activation.kind != ActivationKind::kSquaredRelu;
  uint32_t values[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int column = chunk / 8 * kTileColumns + 16 * q + 2 * (chunk % 8);
    values[q] = 0;
    if (column >= p.f) continue;  // F is even
    const uint32_t g = *reinterpret_cast<const uint32_t*>(gate + column);
    const uint32_t u = gated ? *reinterpret_cast<const uint32_t*>(gate + p.f + column) : 0;
    values[q] = ptx::PackBf16(Activate(p.activation, ptx::FirstBf16(g), ptx::FirstBf16(u)),
                              Activate(p.activation, ptx::SecondBf16(g), ptx::SecondBf16(u)));
  }
  *reinterpret_cast<uint4*>(p.h + row * p.h_stride + chunk * 8) =
      make_uint4(values[0], values[1], values[2], values[3]);
}

// ---- Memory

struct Scratch {
  BlockLists lists;
  uint16_t* x = nullptr;        // (T, D up to 64), permuted
  uint16_t* gate_up = nullptr;  // (rows, 2 F)
  float* y = nullptr;           // (rows, columns), in place of gate_up
};

int64_t GateUpStride(int64_t f) { return RoundUp(2 * f, 8); }

// Of D, as many as fit where gate and up were.
int64_t ColumnsAtOnce(int64_t rows, int64_t d, int64_t f) {
  const int64_t bytes = std::max(kOutputBytes, rows * GateUpStride(f) * 2);
  const int64_t most = std::max<int64_t>(128, bytes / 4 / rows / 128 * 128);
  return RoundUp(CeilDiv(d, CeilDiv(d, most)), 128);
}

// Grows with every size.
int64_t Carve(std::byte* base, const GroupedSizes& s, Scratch* out) {
  int64_t used = 0;
  const auto take = [&](auto** pointer, int64_t bytes) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += RoundUp(bytes, 64);
  };
  const int64_t rows = s.t * (s.top_k + 1);
  const int64_t blocks = s.t * s.top_k / 64 + s.experts + 1;
  take(&out->lists.counts, 2 * sizeof(int32_t));
  take(&out->lists.routed, blocks * static_cast<int64_t>(sizeof(RowBlock)));
  take(&out->lists.shared, CeilDiv(s.t, 64) * static_cast<int64_t>(sizeof(RowBlock)));
  take(&out->x, s.t * RoundUp(s.d, kTileColumns) * 2);
  const int64_t y_bytes =
      std::min(rows * RoundUp(s.d, 128) * 4, std::max(kOutputBytes, rows * 128 * 4));
  take(&out->gate_up, std::max(rows * GateUpStride(s.f) * 2, y_bytes));
  out->y = reinterpret_cast<float*>(out->gate_up);
  return used;
}

bool Uniform(const WeightSet& set, int64_t n, int64_t k) {
  return set.uniform && set.like.data != nullptr && set.like.n == n && set.like.k == k &&
         HasPrefill(set.like);
}

bool EnoughRows(int64_t t, int32_t top_k, int32_t experts) {
  return t >= kLeastTokens && t * top_k >= kLeastRows * experts;
}

// Rows of a block, as measured on an H100 with rows spread evenly: few experts should have a nearly
// empty block. Not from the counts, which are on the device; bits do not depend on it.
int BlockRows(const GroupedParams& p) {
  const int64_t rows = p.t * p.top_k / p.expert_count;  // of an expert
  if (!Has96Rows(p.gate_up.like.format)) return rows <= 64 ? 64 : 128;
  if (rows <= 48) return 64;
  return rows > 80 && rows <= 112 ? 128 : 96;
}

// Routed experts, or the shared one: each with its own sizes.
struct Part {
  WeightTiles gate_up, down;
  int64_t f = 0;
  int64_t max_rows = 0;
  const RowBlock* blocks = nullptr;
  const int32_t* block_count = nullptr;
  const int32_t* first_row = nullptr;
  const int32_t* end_row = nullptr;
};

class Run {
 public:
  Run(const OpContext& context, const GroupedParams& params)
      : context_(context),
        p_(params),
        stream_(StreamOf(context)),
        block_rows_(BlockRows(p_)),
        gate_up_stride_(GateUpStride(std::max(p_.f, p_.shared_f))) {
    const int64_t needed = Carve(params.workspace,
                                 {.t = p_.t,
                                  .d = p_.d,
                                  .f = std::max(p_.f, p_.shared_f),
                                  .experts = p_.expert_count,
                                  .top_k = p_.top_k},
                                 &scratch_);
    NIBBLE_CHECK(needed <= p_.workspace_bytes, "grouped experts of {} tokens: {} bytes", p_.t,
                 p_.workspace_bytes);
    const int32_t* const shared_row = p_.lists.first_row + p_.expert_count;
    parts_[0] = {p_.gate_up.like,
                 p_.down.like,
                 p_.f,
                 p_.t * p_.top_k,
                 scratch_.lists.routed,
                 scratch_.lists.counts,
                 p_.lists.first_row,
                 shared_row};
    if (p_.shared_f == 0) return;
    parts_[part_count_++] = {
        p_.shared_gate_up,         p_.shared_down, p_.shared_f,   p_.t, scratch_.lists.shared,
        scratch_.lists.counts + 1, shared_row,     shared_row + 1};
  }

  void Hidden() const {
    LaunchPdl(ListBlocksKernel, 1, kListThreads, 0, stream_, p_, scratch_.lists, block_rows_);
    PermuteRows({.x = p_.x, .x_stride = p_.d, .m = p_.t, .k = p_.d}, scratch_.x, stream_);
    for (int i = 0; i < part_count_; ++i) {
      const Part& part = parts_[i];
      LaunchProduct({.weight = part.gate_up,
                     .blocks = part.blocks,
                     .block_count = part.block_count,
                     .row_token = p_.lists.row_token,
                     .x = scratch_.x,
                     .x_stride = RoundUp(p_.d, kTileColumns),
                     .out = {.y = scratch_.gate_up, .stride = gate_up_stride_, .n = part.gate_up.n},
                     .side = 0},
                    part.gate_up.n, block_rows_, stream_);
    }
    for (int i = 0; i < part_count_; ++i) {
      const Part& part = parts_[i];
      const int64_t chunks = CeilDiv(part.f, kTileColumns) * 8;
      LaunchPdl(ActivateKernel,
                dim3(static_cast<unsigned>(part.max_rows),
                     static_cast<unsigned>(CeilDiv(chunks, kActivateThreads))),
                kActivateThreads, 0, stream_,
                ActivateParams{.first_row = part.first_row,
                               .end_row = part.end_row,
                               .gate_up = scratch_.gate_up,
                               .gate_up_stride = gate_up_stride_,
                               .h = p_.h,
                               .h_stride = p_.h_stride,
                               .f = static_cast<int32_t>(part.f),
                               .activation = p_.activation});
    }
  }

  void Output() const {
    const int64_t columns = ColumnsAtOnce(p_.t * (p_.top_k + 1), p_.d, std::max(p_.f, p_.shared_f));
    for (int64_t first = 0; first < p_.d; first += columns) {
      const int64_t end = std::min(p_.d, first + columns);
      for (int i = 0; i < part_count_; ++i) {
        const Part& part = parts_[i];
        LaunchProduct(
            {.weight = part.down,
             .blocks = part.blocks,
             .block_count = part.block_count,
             .x = p_.h,
             .x_stride = p_.h_stride,
             .out = {.y_f32 = scratch_.y - first, .stride = columns, .n = static_cast<int>(end)},
             .side = 1,
             .first_row_tile = static_cast<int>(first / kTileRows)},
            static_cast<int>(end - first), block_rows_, stream_);
      }
      SumRows(context_, {.lists = p_.lists,
                         .y = scratch_.y,
                         .y_stride = columns,
                         .top_k = p_.top_k,
                         .t = p_.t,
                         .d = end - first,
                         .out = p_.out == nullptr ? nullptr : p_.out + first,
                         .out_f32 = p_.out_f32 == nullptr ? nullptr : p_.out_f32 + first,
                         .out_stride = p_.d,
                         .add = p_.add});
    }
  }

 private:
  const OpContext& context_;
  const GroupedParams& p_;
  const cudaStream_t stream_;
  const int block_rows_;
  const int64_t gate_up_stride_;
  Scratch scratch_;
  Part parts_[2];
  int part_count_ = 1;
};

}  // namespace

bool GroupedTakes(const GroupedParams& p) {
  if (!EnoughRows(p.t, p.top_k, p.expert_count) || p.f % 2 != 0) return false;
  if (!Uniform(p.gate_up, p.activation.inputs(p.f), p.d) || !Uniform(p.down, p.d, p.f))
    return false;
  if (p.shared_f == 0) return true;
  return p.shared_f % 2 == 0 && p.shared_gate_up.n == p.activation.inputs(p.shared_f) &&
         HasPrefill(p.shared_gate_up) && HasPrefill(p.shared_down);
}

int64_t GroupedWorkspace(const GroupedSizes& s) {
  if (!HasWgmma(CurrentCapability()) || !EnoughRows(s.t, s.top_k, s.experts)) return 0;
  Scratch ignored;
  return Carve(nullptr, s, &ignored);
}

void GroupedHidden(const OpContext& context, const GroupedParams& params) {
  Run(context, params).Hidden();
}

void GroupedOutput(const OpContext& context, const GroupedParams& params) {
  Run(context, params).Output();
}

}  // namespace nibble::kernels::cuda::moe
