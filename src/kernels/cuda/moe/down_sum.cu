// The block's warps take the slices of all groups' down rows in turns; its threads add, per token
// and row, finished expert outputs by ascending expert. Nobody else writes there, so the order is
// fixed.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
static_assert(kDownSumTokens * kTileRows <= kThreads);

struct Plan {
  RingShape ring;
  int32_t buffers = 2;
  int32_t routed_slices = 0;
  int32_t shared_slices = 0;
  int32_t columns = 0;         // rows of a group, at most
  int32_t batch_groups = 0;    // between two additions
  int32_t window = 0;          // groups whose table is in shared memory at a time
  int32_t partial_floats = 0;  // of a buffer
  // Shared memory, in bytes from its begin; the ring comes first.
  uint32_t partial_at = 0;  // (buffers, batch_groups * slices, columns)
  uint32_t scales_at = 0;   // (buffers, batch_groups, 16)
  uint32_t groups_at = 0;   // (max_groups)
  uint32_t places_at = 0;   // (T, top_k + 1)
  uint32_t shared_bytes = 0;
};

// So that a thread holds at most one scale of a batch.
constexpr int kMaxBatchGroups = kThreads / kTileRows;

struct LocalGroup {
  Source source;  // data: at the block's row tile
  const float* scales;
  const float* bias;  // or null
  int32_t first_row;
  int32_t rows;
};

__host__ __device__ inline int MaxSlices(const Plan& plan) {
  return plan.routed_slices > plan.shared_slices ? plan.routed_slices : plan.shared_slices;
}

// Slices of all groups, group by group.
struct Units {
  int groups;
  int routed_groups;
  int routed_slices;
  int shared_slices;

  __device__ __forceinline__ int SlicesOf(int group) const {
    return group < routed_groups ? routed_slices : shared_slices;
  }
  __device__ __forceinline__ int FirstOf(int group) const {
    return min(group, routed_groups) * routed_slices +
           max(group - routed_groups, 0) * shared_slices;
  }
  __device__ __forceinline__ int count() const { return FirstOf(groups); }
};

// Walks the units that one warp takes.
struct Cursor {
  int unit;
  int slice;
  int group;

  __device__ __forceinline__ Cursor(const Units& units, int warp)
      : unit(warp), slice(warp), group(0) {
    Settle(units);
  }
  __device__ __forceinline__ void Settle(const Units& units) {
    if (unit >= units.count()) return;
    for (int slices = units.SlicesOf(group); slice >= slices; slices = units.SlicesOf(group)) {
      slice -= slices;
      ++group;
    }
  }
  __device__ __forceinline__ void Step(const Units& units) {
    unit += kWarps;
    slice += kWarps;
    Settle(units);
  }
};

// Groups whose sums lie in shared memory.
struct Batch {
  int first;
  int end;
  float* partial;
  const RowScale* scales;
};

// Finished expert outputs of the batch, in place of the sums of their first slices.
__device__ __forceinline__ void FinishOutputs(const Units& units, const Batch& batch,
                                              const LocalGroup* groups, int column_shift,
                                              int sum_floats) {
  const int outputs = (batch.end - batch.first) * kTileRows << column_shift;
  const int first_unit = units.FirstOf(batch.first);
  for (int i = threadIdx.x; i < outputs; i += kThreads) {
    const int row = i % kTileRows, rest = i / kTileRows;
    const int column = rest & ((1 << column_shift) - 1),
              group = batch.first + (rest >> column_shift);
    if (column >= groups[group].rows) continue;
    float* const at = batch.partial + (units.FirstOf(group) - first_unit) * sum_floats +
                      column * kColumnStride + row;
    *at = batch.scales[(group - batch.first) * kTileRows + row].Apply(
        AddSlices(at, groups[group].source.slices(), sum_floats));
  }
}

// Adds what the batch has for a token's row. *next: the token's first place that may be in it.
__device__ __forceinline__ void AddPlaces(const Units& units, const Batch& batch, int sum_floats,
                                          const Place* places, int place_count, int row, int* next,
                                          float* sum) {
  const int first_unit = units.FirstOf(batch.first);
  for (; *next < place_count; ++*next) {
    const Place place = places[*next];
    if (place.group_column < 0) continue;
    const int group = place.group_column / kColumnsOfGroup;
    if (group >= batch.end) return;
    if (group < batch.first) continue;
    const float y = batch.partial[(units.FirstOf(group) - first_unit) * sum_floats +
                                  place.group_column % kColumnsOfGroup * kColumnStride + row];
    *sum = __fmaf_rn(place.weight, y, *sum);
  }
}

__device__ __forceinline__ void Store(const DownSumParams& p, int64_t token, int64_t column,
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
  using Word = std::conditional_t<alignof(T) % 8 == 0, uint64_t, uint32_t>;
  static_assert(sizeof(T) % sizeof(Word) == 0);
  T value;
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(Word); ++i) {
    const Word word = __ldcg(reinterpret_cast<const Word*>(from) + i);
    memcpy(reinterpret_cast<char*>(&value) + i * sizeof(Word), &word, sizeof(Word));
  }
  return value;
}

template <Formats kFormats>
__global__ void __launch_bounds__(kThreads, kFormats == Formats::kAny ? 1 : 2)
    DownSumKernel(const __grid_constant__ DownSumParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_tile = blockIdx.x, place_count = p.top_k + 1;
  if (int64_t{row_tile} * kTileRows >= p.d) return;
  auto* const groups = reinterpret_cast<LocalGroup*>(memory + plan.groups_at);
  auto* const places = reinterpret_cast<Place*>(memory + plan.places_at);
  const int sum_floats = plan.columns * kColumnStride;
  const int column_shift = 32 - __clz(plan.columns - 1);
  const int row = threadIdx.x % kTileRows, token = threadIdx.x / kTileRows;
  const int64_t column = int64_t{row_tile} * kTileRows + row;

  // The predecessor, which let this kernel start, has waited for the lists: they are complete
  // before it is, and the first weights come while it still runs.
  const Counts counts = ReadList(p.lists.counts);
  for (int i = threadIdx.x; i < p.t * place_count; i += kThreads)
    places[i] = ReadList(p.lists.places + i);
  for (int g = threadIdx.x; g < counts.groups; g += kThreads) {
    const Group* group = p.lists.groups + g;
    LocalGroup local = {.source = ReadList(&group->expert.down),
                        .scales = ReadList(&group->expert.down_scales),
                        .bias = ReadList(&group->expert.down_bias),
                        .first_row = ReadList(&group->first_row),
                        .rows = ReadList(&group->rows)};
    local.source.data += int64_t{row_tile} * local.source.row_tile_bytes;
    groups[g] = local;
  }
  __syncthreads();
  const Units units = {counts.groups, counts.routed_groups, plan.routed_slices, plan.shared_slices};
  Cursor ahead(units, warp);
  Cursor now = ahead;
  const int all_units = units.count();
  WarpRing<kFormats == Formats::kAny ? 0 : kLeanStages> ring(
      memory + warp * plan.ring.stages * plan.ring.stage_bytes, plan.ring);
  const auto fill = [&] {
    if (ahead.unit >= all_units) return ring.Skip();
    const Source& source = groups[ahead.group].source;
    ring.template Fill<kFormats>(SliceOf<kFormats>(source, 0, ahead.slice), source, lane);
    ahead.Step(units);
  };
#pragma unroll 1
  for (int s = 0; s < plan.ring.stages; ++s) fill();
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  int next = 0;
  float sum_of_token = 0.0f;
  int first_group = 0;
  const int batches = (counts.groups + plan.batch_groups - 1) / plan.batch_groups;
  for (int b = 0; b < batches; ++b) {
    const int buffer = plan.buffers == 2 ? b % 2 : 0;
    auto* const scales =
        reinterpret_cast<RowScale*>(memory + plan.scales_at) + buffer * kMaxBatchGroups * kTileRows;
    const Batch batch = {.first = first_group,
                         .end = first_group + (counts.groups - first_group) / (batches - b),
                         .partial = reinterpret_cast<float*>(memory + plan.partial_at) +
                                    buffer * plan.partial_floats,
                         .scales = scales};
    // On its way while slices are summed.
    RowScale scale = {};
    const bool scales_here = threadIdx.x < (batch.end - batch.first) * kTileRows;
    if (scales_here) {
      const LocalGroup& group = groups[batch.first + threadIdx.x / kTileRows];
      scale = {group.scales[column],
               group.bias == nullptr || column >= p.d ? 0.0f : group.bias[column]};
    }
    const int end_unit = units.FirstOf(batch.end);
    float* to = batch.partial + (now.unit - units.FirstOf(batch.first)) * sum_floats;
    for (; now.unit < end_unit; to += kWarps * sum_floats) {
      const LocalGroup& group = groups[now.group];
      const int h_row = group.first_row + min(lane / 4, group.rows - 1);
      const LaneRows<1> rows = {p.h + h_row * p.h_stride + lane % 4 * 16};
      float sum[1][4];
      SumSlice<kFormats, 1, false>(ring, SliceOf<kFormats>(group.source, 0, now.slice),
                                   group.source, rows, lane, sum);
      fill();
      StoreSums(to, group.rows, lane, sum);
      now.Step(units);
    }
    if (scales_here) scales[threadIdx.x] = scale;
    __syncthreads();
    FinishOutputs(units, batch, groups, column_shift, sum_floats);
    __syncthreads();
    if (token < p.t) {
      AddPlaces(units, batch, sum_floats, places + token * place_count, place_count, row, &next,
                &sum_of_token);
    }
    if (plan.buffers == 1) __syncthreads();
    first_group = batch.end;
  }
  if (token < p.t) Store(p, token, column, sum_of_token);
}

// The shared memory that the plan needs.
void PlaceInShared(const DownSumParams& p, Plan* plan) {
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  plan->partial_floats = plan->batch_groups * MaxSlices(*plan) * plan->columns * kColumnStride;
  take(kWarps * plan->ring.stages * plan->ring.stage_bytes);
  plan->partial_at = take(int64_t{4} * plan->buffers * plan->partial_floats);
  plan->scales_at = take(plan->buffers * kMaxBatchGroups * kTileRows * int64_t{sizeof(RowScale)});
  plan->groups_at = take(p.max_groups * int64_t{sizeof(LocalGroup)});
  plan->places_at = take(p.t * (p.top_k + 1) * int64_t{sizeof(Place)});
  plan->shared_bytes = used;
}

// False where shared memory is too small for groups of so many rows.
bool MakePlan(const DownSumParams& p, Plan* plan) {
  WeightSet all = p.routed;
  all.Add(p.shared);
  plan->routed_slices = p.routed.slices;
  plan->shared_slices = p.shared.slices;
  plan->columns = static_cast<int32_t>(p.t);
  plan->ring.stage_bytes = all.slice_bytes;
  const bool lean = FormatsOf(all) != Formats::kAny;
  const auto most = static_cast<size_t>(CurrentDevice().shared_memory_per_block);
  const size_t budget = lean ? std::min<size_t>(most, kDownSumShared) : most;
  const int most_stages = lean ? kLeanStages : 2, fewest_stages = lean ? kLeanStages : 1;
  for (const size_t limit : {budget, most}) {
    for (plan->buffers = 2; plan->buffers >= 1; --plan->buffers) {
      for (plan->ring.stages = most_stages; plan->ring.stages >= fewest_stages;
           --plan->ring.stages) {
        for (plan->batch_groups = kMaxBatchGroups / 2; plan->batch_groups >= 1;
             --plan->batch_groups) {
          PlaceInShared(p, plan);
          if (plan->shared_bytes <= limit) return true;
        }
      }
    }
  }
  return false;
}

}  // namespace

void DownSum(const OpContext& context, const DownSumParams& params) {
  Plan plan;
  MakePlan(params, &plan);
  WeightSet all = params.routed;
  all.Add(params.shared);
  const Formats formats = FormatsOf(all);
  const auto kernel = formats == Formats::kNvfp4   ? DownSumKernel<Formats::kNvfp4>
                      : formats == Formats::kMxfp4 ? DownSumKernel<Formats::kMxfp4>
                                                   : DownSumKernel<Formats::kAny>;
  // Not fewer than multiprocessors: the next launch would put two of its blocks on an idle one.
  const int64_t row_tiles = (params.d + kTileRows - 1) / kTileRows;
  const auto blocks =
      static_cast<unsigned>(std::max<int64_t>(row_tiles, CurrentDevice().multiprocessors));
  LaunchPdl(kernel, blocks, kThreads, plan.shared_bytes, StreamOf(context), params, plan);
}

}  // namespace nibble::kernels::cuda::moe
