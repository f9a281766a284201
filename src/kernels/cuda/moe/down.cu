// FC2 and the sum over experts. A block owns 16 columns of out and goes through all groups: its
// warps take the slices of their down rows in turns, its threads add, per token and row, finished
// expert outputs by ascending expert. Nobody else writes there, so the order is fixed.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kOutputsOfThread = kTokensInRegisters * kTileRows / kThreads;

struct Plan {
  RingShape ring;
  int32_t buffers = 2;
  int32_t routed_slices = 0;
  int32_t shared_slices = 0;
  int32_t columns = 0;       // rows of a group, at most
  int32_t batch_groups = 0;  // between two additions
  int32_t window = 0;        // groups whose table is in shared memory at a time
};

struct LocalGroup {
  Source source;  // data: at the block's row tile
  int32_t first_row;
  int32_t rows;
};

struct Shared {
  std::byte* ring;     // (warps, stages)
  float* partial;      // (buffers, batch_groups * slices, columns)
  RowScale* scales;    // (buffers, batch_groups, 16)
  LocalGroup* groups;  // (window)
  Place* places;       // (T, top_k + 1) of at most kTokensInRegisters tokens
};

__host__ __device__ inline int MaxSlices(const Plan& plan) {
  return plan.routed_slices > plan.shared_slices ? plan.routed_slices : plan.shared_slices;
}

__host__ __device__ inline size_t Carve(std::byte* base, const Plan& plan, int64_t t, int top_k,
                                        Shared* shared) {
  size_t used = 0;
  const auto take = [&](auto** pointer, size_t count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 15) / 16 * 16;
  };
  take(&shared->ring, kWarps * plan.ring.stages * plan.ring.stage_bytes);
  take(&shared->partial,
       plan.buffers * plan.batch_groups * MaxSlices(plan) * plan.columns * kColumnStride);
  take(&shared->scales, plan.buffers * plan.batch_groups * kTileRows);
  take(&shared->groups, plan.window);
  take(&shared->places, t <= kTokensInRegisters ? t * (top_k + 1) : 0);
  return used;
}

// Groups whose table lies in shared memory. Its units: slices of its groups, group by group.
struct Window {
  int first;  // group
  int groups;
  int routed_groups;  // of these
  int routed_slices;
  int shared_slices;

  __device__ Window(const Plan& plan, const Counts& counts, int first_group)
      : first(first_group),
        groups(min(plan.window, counts.groups - first_group)),
        routed_groups(max(0, min(groups, counts.routed_groups - first_group))),
        routed_slices(plan.routed_slices),
        shared_slices(plan.shared_slices) {}

  // Groups are counted from the window's first.
  __device__ __forceinline__ int SlicesOf(int group) const {
    return group < routed_groups ? routed_slices : shared_slices;
  }
  __device__ __forceinline__ int FirstUnitOf(int group) const {
    return min(group, routed_groups) * routed_slices +
           max(group - routed_groups, 0) * shared_slices;
  }
  __device__ __forceinline__ int units() const { return FirstUnitOf(groups); }
};

// Walks the units that one warp takes.
struct Cursor {
  int unit;
  int slice;
  int group;

  __device__ __forceinline__ Cursor(const Window& window, int warp)
      : unit(warp), slice(warp), group(0) {
    Settle(window);
  }
  __device__ __forceinline__ void Settle(const Window& window) {
    if (unit >= window.units()) return;
    for (int slices = window.SlicesOf(group); slice >= slices; slices = window.SlicesOf(group)) {
      slice -= slices;
      ++group;
    }
  }
  __device__ __forceinline__ void Step(const Window& window) {
    unit += kWarps;
    slice += kWarps;
    Settle(window);
  }
};

// Groups of a window whose slice sums lie in shared memory.
struct Batch {
  int first;
  int end;
  const float* partial;
  const RowScale* scales;
};

// Adds what the batch has for a token's row. *next: the token's first place that may be in it.
__device__ __forceinline__ void AddPlaces(const Window& window, const Batch& batch,
                                          const LocalGroup* groups, int sum_floats,
                                          const Place* places, int place_count, int row, int* next,
                                          float* sum) {
  for (; *next < place_count; ++*next) {
    const Place place = places[*next];
    if (place.group_column < 0) continue;
    const int group = place.group_column / kColumnsOfGroup - window.first;
    if (group >= batch.end) return;
    if (group < batch.first) continue;
    const int first_unit = window.FirstUnitOf(group) - window.FirstUnitOf(batch.first);
    const float* const from = batch.partial + first_unit * sum_floats +
                              place.group_column % kColumnsOfGroup * kColumnStride + row;
    const float y = batch.scales[(group - batch.first) * kTileRows + row].Apply(
        AddSlices(from, groups[group].source.slices(), sum_floats));
    *sum = __fmaf_rn(place.weight, y, *sum);
  }
}

__device__ __forceinline__ void Store(const DownParams& p, int64_t token, int64_t column,
                                      float sum) {
  if (column >= p.d) return;
  if (p.out_f32 != nullptr) {
    p.out_f32[token * p.d + column] = sum;
  } else {
    p.out[token * p.d + column] = static_cast<uint16_t>(ptx::PackBf16(sum, 0.0f));
  }
}

// Lists are read past L1: they were written two kernels ago, before the wait.
template <typename T>
__device__ __forceinline__ T ReadList(const T* from) {
  static_assert(sizeof(T) % 4 == 0);
  T value;
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / 4; ++i)
    reinterpret_cast<uint32_t*>(&value)[i] = __ldcg(reinterpret_cast<const uint32_t*>(from) + i);
  return value;
}

// Reads lists: they were written two kernels ago, so they are complete before the wait.
__device__ void LoadWindow(const DownParams& p, const Window& window, int row_tile,
                           LocalGroup* groups) {
  for (int g = threadIdx.x; g < window.groups; g += kThreads) {
    const Group* group = p.lists.groups + window.first + g;
    groups[g] = {.source = SourceOf(ReadList(&group->expert.down.tiles), row_tile),
                 .first_row = ReadList(&group->first_row),
                 .rows = ReadList(&group->rows)};
  }
}

template <int kTiles, Formats kFormats>
__global__ void __launch_bounds__(kThreads, kTiles == 1 && kFormats != Formats::kAny ? 2 : 1)
    DownKernel(const __grid_constant__ DownParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_tile = blockIdx.x, place_count = p.top_k + 1;
  Shared shared;
  Carve(memory, plan, p.t, p.top_k, &shared);
  const bool few = p.t <= kTokensInRegisters;
  const int sum_floats = plan.columns * kColumnStride;
  const int row = threadIdx.x % kTileRows;
  const int64_t column = int64_t{row_tile} * kTileRows + row;

  // The predecessor, which let this kernel start, has waited for the lists. So the first weights
  // come while it still runs.
  const Counts counts = ReadList(p.lists.counts);
  if (few) {
    for (int i = threadIdx.x; i < p.t * place_count; i += kThreads)
      shared.places[i] = ReadList(p.lists.places + i);
  }
  WarpRing ring(shared.ring + warp * plan.ring.stages * plan.ring.stage_bytes, plan.ring);
  int next[kOutputsOfThread] = {};
  float sums[kOutputsOfThread] = {};
  int batch_count = 0;
  for (int first = 0; first < max(counts.groups, 1); first += plan.window) {
    const Window window(plan, counts, first);
    if (first > 0) __syncthreads();
    LoadWindow(p, window, row_tile, shared.groups);
    __syncthreads();
    Cursor ahead(window, warp);
    Cursor now = ahead;
    const int all_units = window.units();
    const auto fill = [&] {
      if (ahead.unit >= all_units) return ring.Skip();
      const Source& source = shared.groups[ahead.group].source;
      ring.Fill<kFormats>(SliceOf(source, 0, ahead.slice), source, lane);
      ahead.Step(window);
    };
    for (int s = 0; s < plan.ring.stages; ++s) fill();
    if (first == 0) {
      ptx::WaitForPredecessor();
      ptx::LaunchSuccessor();
    }
    const int batches = (window.groups + plan.batch_groups - 1) / plan.batch_groups;
    for (int b = 0; b < batches; ++b, ++batch_count) {
      const int buffer = plan.buffers == 2 ? batch_count % 2 : 0;
      float* const partial =
          shared.partial + buffer * plan.batch_groups * MaxSlices(plan) * sum_floats;
      RowScale* const scales = shared.scales + buffer * plan.batch_groups * kTileRows;
      const Batch batch = {.first = window.groups * b / batches,
                           .end = window.groups * (b + 1) / batches,
                           .partial = partial,
                           .scales = scales};
      for (int i = threadIdx.x; i < (batch.end - batch.first) * kTileRows; i += kThreads) {
        const ExpertLinear& down = p.lists.groups[first + batch.first + i / kTileRows].expert.down;
        const float* bias = down.bias;
        scales[i] = {down.tiles.row_scales[column],
                     bias == nullptr || column >= p.d ? 0.0f : bias[column]};
      }
      const int first_unit = window.FirstUnitOf(batch.first);
      const int end_unit = window.FirstUnitOf(batch.end);
      while (now.unit < end_unit) {
        const LocalGroup& group = shared.groups[now.group];
        LaneRows<kTiles> rows;
#pragma unroll
        for (int c = 0; c < kTiles; ++c) {
          const int h_row = group.first_row + min(c * 8 + lane / 4, group.rows - 1);
          rows.row[c] = p.h + h_row * p.h_stride + lane % 4 * 16;
        }
        float sum[kTiles][4];
        const std::byte* stage = ring.Wait();
        SumSlice<kFormats>(stage, SliceOf(group.source, 0, now.slice), group.source, rows, lane,
                           sum);
        ring.Release();
        fill();
        StoreSums(partial + (now.unit - first_unit) * sum_floats, group.rows, lane, sum);
        now.Step(window);
      }
      __syncthreads();
      if (few) {
#pragma unroll
        for (int i = 0; i < kOutputsOfThread; ++i) {
          const int token = (threadIdx.x + i * kThreads) / kTileRows;
          if (token < p.t) {
            AddPlaces(window, batch, shared.groups, sum_floats, shared.places + token * place_count,
                      place_count, row, &next[i], &sums[i]);
          }
        }
      } else if (column < p.d) {
        for (int64_t token = threadIdx.x / kTileRows; token < p.t; token += kThreads / kTileRows) {
          int from = 0;
          float* const sum_of_token = p.sums + token * p.d + column;
          float sum = batch_count == 0 ? 0.0f : *sum_of_token;
          AddPlaces(window, batch, shared.groups, sum_floats, p.lists.places + token * place_count,
                    place_count, row, &from, &sum);
          *sum_of_token = sum;
        }
      }
      if (plan.buffers == 1) __syncthreads();
    }
  }
  if (few) {
#pragma unroll
    for (int i = 0; i < kOutputsOfThread; ++i) {
      const int token = (threadIdx.x + i * kThreads) / kTileRows;
      if (token < p.t) Store(p, token, column, sums[i]);
    }
  } else if (column < p.d) {
    for (int64_t token = threadIdx.x / kTileRows; token < p.t; token += kThreads / kTileRows)
      Store(p, token, column, batch_count == 0 ? 0.0f : p.sums[token * p.d + column]);
  }
}

// False where shared memory is too small for groups of so many rows.
bool MakePlan(const DownParams& p, Plan* plan) {
  WeightSet all = p.routed_set;
  all.Add(p.shared_set);
  plan->routed_slices = p.routed_set.slices;
  plan->shared_slices = p.shared ? p.shared_set.slices : 0;
  plan->columns = static_cast<int32_t>(std::min<int64_t>(p.group_rows, p.t));
  plan->window = static_cast<int32_t>(std::min<int64_t>(p.max_groups, 512));
  plan->ring.stage_bytes = all.slice_bytes;
  const bool lean = (all.all_nvfp4 || all.all_mxfp4) && p.group_rows == 8;
  const auto most = static_cast<size_t>(CurrentDevice().shared_memory_per_block);
  const size_t budget = lean ? std::min<size_t>(most, 112 * 1024) : most;
  Shared ignored;
  for (const size_t limit : {budget, most}) {
    for (plan->buffers = 2; plan->buffers >= 1; --plan->buffers) {
      for (plan->ring.stages = 2; plan->ring.stages >= 1; --plan->ring.stages) {
        for (plan->batch_groups = 16; plan->batch_groups >= 1; --plan->batch_groups)
          if (Carve(nullptr, *plan, p.t, p.top_k, &ignored) <= limit) return true;
      }
    }
  }
  return false;
}

template <int kTiles>
auto KernelOf(Formats formats) {
  switch (formats) {
    case Formats::kNvfp4:
      return DownKernel<kTiles, Formats::kNvfp4>;
    case Formats::kMxfp4:
      return DownKernel<kTiles, Formats::kMxfp4>;
    default:
      return DownKernel<kTiles, Formats::kAny>;
  }
}

}  // namespace

bool DownFits(const DownParams& params) {
  Plan plan;
  return MakePlan(params, &plan);
}

void Down(const OpContext& context, const DownParams& params) {
  Plan plan;
  MakePlan(params, &plan);
  WeightSet all = params.routed_set;
  all.Add(params.shared_set);
  const auto kernel = params.group_rows <= 8    ? KernelOf<1>(FormatsOf(all))
                      : params.group_rows <= 16 ? KernelOf<2>(FormatsOf(all))
                                                : KernelOf<4>(FormatsOf(all));
  Shared ignored;
  LaunchPdl(kernel, static_cast<unsigned>((params.d + kTileRows - 1) / kTileRows), kThreads,
            Carve(nullptr, plan, params.t, params.top_k, &ignored), StreamOf(context), params,
            plan);
}

}  // namespace nibble::kernels::cuda::moe
