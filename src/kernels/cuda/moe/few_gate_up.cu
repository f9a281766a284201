// An item is 16 outputs of one group: a gate tile and the up tile of the same rows. Items of all
// groups form one list, of which every block has a contiguous share; its warps take items in turns.
#include <algorithm>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/few_choice.cuh"
#include "kernels/cuda/moe/few_slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kStages = 2;
// Rows of x that are in shared memory at a time: all tokens', which are asked for right behind the
// wait, or those of some groups.
__host__ __device__ constexpr bool StagesTokens(int t) { return t <= kBesideTokens; }
__host__ __device__ constexpr int StagedRows(int t) {
  return StagesTokens(t) ? t : t <= 2 * kFewRows ? kFewRows : 2 * kFewRows;
}

struct Plan {
  int32_t slices = 0;
  int32_t k_tiles = 0;
  int32_t tile_bytes = 0;
  int32_t routed_tiles = 0;  // items of a group
  int32_t shared_tiles = 0;
  uint32_t routed_inverse = 0;  // ⌈2^32 / routed_tiles⌉
  uint32_t shared_inverse = 0;
  int32_t x_stride = 0;
  // Shared memory, in bytes from its begin; the rings come first.
  uint32_t x_at = 0;  // (StagedRows), x_stride apart
  uint32_t choice_at = 0;
  uint32_t shared_bytes = 0;
};

// A slice of gate and the same of up, and with the last one row scales.
template <Formats kFormats, int kParts>
struct StageOf {
  static constexpr int kScalesAt = kParts * kSliceBytesOf<kFormats>;
  static constexpr int kScaleBytes = kTileRows * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kScalesAt + kParts * kScaleBytes;
};

// 16 outputs of a group.
struct Item {
  int group;
  int tile;
  bool is_shared;

  __device__ __forceinline__ Item(const Plan& plan, const FewCounts& counts, int index) {
    const int routed = counts.routed_groups * plan.routed_tiles;
    is_shared = index >= routed;
    const int at = is_shared ? index - routed : index;
    const int tiles = is_shared ? plan.shared_tiles : plan.routed_tiles;
    const uint32_t inverse = is_shared ? plan.shared_inverse : plan.routed_inverse;
    const int of_kind = tiles == 1 ? at : static_cast<int>(__umulhi(at, inverse));
    tile = at - of_kind * tiles;
    group = is_shared ? counts.routed_groups + of_kind : of_kind;
  }
};

__device__ __forceinline__ int EndOfGroup(const Plan& plan, const FewCounts& counts, int group) {
  const int shared = group + 1 - counts.routed_groups;
  return shared <= 0 ? (group + 1) * plan.routed_tiles
                     : counts.routed_groups * plan.routed_tiles + shared * plan.shared_tiles;
}

// x of some rows, or of the first tokens where row_token is null; commits.
template <int kWarps>
__device__ __forceinline__ void CopyRows(const FewParams& p, const Plan& plan,
                                         const uint8_t* row_token, int rows, uint16_t* to) {
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    const int token = row_token == nullptr ? row : row_token[row];
    const uint16_t* const from = p.x + token * p.d;
#pragma unroll 4
    for (int i = threadIdx.x % 32 * 8; i < p.d; i += 32 * 8)
      ptx::CopyAsync16(to + row * plan.x_stride + i, from + i);
  }
  ptx::CommitCopies();
}

// The same by loads, where waiting for copies would be waiting for weights, too.
template <int kWarps>
__device__ __forceinline__ void LoadRows(const FewParams& p, const Plan& plan,
                                         const uint8_t* row_token, int rows, uint16_t* to) {
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    const uint16_t* const from = p.x + row_token[row] * p.d;
#pragma unroll 8
    for (int i = threadIdx.x % 32 * 8; i < p.d; i += 32 * 8)
      *reinterpret_cast<uint4*>(to + row * plan.x_stride + i) =
          __ldcg(reinterpret_cast<const uint4*>(from + i));
  }
}

// Walks the slices of the items that one warp takes.
struct Cursor {
  int item;
  int slice;
  int tiles;              // row tiles of gate, and of up
  const float* scales;    // row scales of gate, of the item's rows
  const std::byte* data;  // the lane's bytes of the slice of gate

  __device__ __forceinline__ void Enter(const Plan& plan, int parts, const FewCounts& counts,
                                        const FewGroup* groups, int end, int lane) {
    slice = 0;
    if (item >= end) return;
    const Item at(plan, counts, item);
    tiles = at.is_shared ? plan.shared_tiles : plan.routed_tiles;
    const std::byte* const weight = groups[at.group].data;
    // They lie behind all tiles.
    scales = reinterpret_cast<const float*>(weight + parts * tiles * plan.tile_bytes) +
             at.tile * kTileRows;
    data = weight + (at.tile * plan.tile_bytes + lane * 16);
  }
};

// The activation of rows g and g + 8 of an item, of columns 2 q and 2 q + 1 of its group.
template <int kParts>
__device__ __forceinline__ void StoreHidden(const FewParams& p, const FewGroup& group, int tile,
                                            int f, const RowScale (&scales)[kParts][2],
                                            const float (&total)[kParts][4], int lane) {
  // What is taken once per item stays short: unrolled, it would not fit the instruction cache.
#pragma unroll 1
  for (int c = 0; c < 2; ++c) {
    const int column = lane % 4 * 2 + c;
    if (column >= group.rows) continue;
    uint16_t* const h = p.h + (group.first_row + column) * p.h_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = tile * kTileRows + lane / 4 + 8 * half;
      const auto finished = [&](int part) {
        const float sum = c == 0 ? total[part][2 * half] : total[part][2 * half + 1];
        return ptx::RoundBf16(scales[part][half].Apply(sum));
      };
      const float gate = finished(0), up = kParts > 1 ? finished(kParts - 1) : 0.0f;
      h[n] = static_cast<uint16_t>(ptx::PackBf16(Activate(p.activation, gate, up), 0.0f));
      // What FC2 reads beside the last tile.
      if ((tile + 1) * kTileRows == f)
#pragma unroll 1
        for (int m = n + kTileRows; m < RoundUp(f, kTileColumns); m += kTileRows) h[m] = 0;
    }
  }
}

// kWhole: D is a multiple of a slice.
template <Formats kFormats, int kParts, bool kWhole, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarps == kFewWarps ? 2 : 1)
    FewGateUpKernel(const __grid_constant__ FewParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  using Stage = StageOf<kFormats, kParts>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kSliceBytes = kSliceBytesOf<kFormats>;
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = threadIdx.x % 32;
  FewChoice choice;
  PlaceChoice(memory + plan.choice_at, p, false, &choice);
  auto* const staged_x = reinterpret_cast<uint16_t*>(memory + plan.x_at);
  const OwnExperts<kThreads> own(p.gate_up, p.routing.experts);
  ClearMasks<kThreads>(p, choice);
  ptx::WaitForPredecessor();
  const bool by_token = kWarps == kFewWarps && StagesTokens(p.t);
  if (by_token) {
    CopyRows<kWarps>(p, plan, nullptr, p.t, staged_x);
    Choose<kThreads, false>(p, choice, reinterpret_cast<float*>(memory));
  } else {
    LoadChosen<kThreads, false>(p, choice);
  }
  const FewCounts counts = FindGroups<kThreads, false>(p, choice, own, p.shared.gate.data);
  // What FewDown reads before it waits would otherwise be queued behind this kernel's weights.
  ptx::LaunchSuccessor();
  const FewGroup* const groups = choice.groups;
  const int all_items = counts.routed_groups * plan.routed_tiles +
                        (counts.groups - counts.routed_groups) * plan.shared_tiles;
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int begin = all_items * block / blocks, end = all_items * (block + 1) / blocks;
  if (begin == end) {
    ptx::WaitForCopies<0>();
    return;
  }

  // Items whose rows of x are in shared memory at a time: of as many groups as fit.
  struct Chunk {
    int end;
    int first_row;
    int rows;
  };
  const auto next_chunk = [&](int first_item) {
    int group = Item(plan, counts, first_item).group;
    const int first_row = groups[group].first_row;
    const auto rows_to = [&](int g) { return groups[g].first_row + groups[g].rows - first_row; };
    while (group + 1 < counts.groups && rows_to(group + 1) <= StagedRows(p.t)) ++group;
    return Chunk{min(end, EndOfGroup(plan, counts, group)), first_row, rows_to(group)};
  };
  Chunk chunk = {end, 0, 0};
  if (!by_token) {
    chunk = next_chunk(begin);
    CopyRows<kWarps>(p, plan, choice.row_token + chunk.first_row, chunk.rows, staged_x);
  }
  const uint32_t ring = ptx::SharedAddress(memory) + warp * kStages * Stage::kBytes;
  Cursor ahead = {begin + warp};
  ahead.Enter(plan, kParts, counts, groups, end, lane);
  const auto fill = [&](int stage) {
    if (ahead.item < end) {
      const uint32_t to = ring + stage * Stage::kBytes + lane * 16;
      const int tiles = min(plan.k_tiles - ahead.slice * kSliceTiles, kSliceTiles);
      CopyFewSlice<kFormats, kWhole>(to, ahead.data, tiles, lane);
      if constexpr (kParts > 1)
        CopyFewSlice<kFormats, kWhole>(to + kSliceBytes, ahead.data + ahead.tiles * plan.tile_bytes,
                                       tiles, lane);
      ahead.data += kSliceBytes;
      if (++ahead.slice == plan.slices) {
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          CopyRowScales(to + Stage::kScalesAt + part * Stage::kScaleBytes - lane * 16,
                        ahead.scales + part * ahead.tiles * kTileRows, lane);
        ahead.item += kWarps;
        ahead.Enter(plan, kParts, counts, groups, end, lane);
      }
    }
    ptx::CommitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) fill(s);
  ptx::WaitForCopies<kStages>();
  __syncthreads();
  int stage = 0;
  int item = begin + warp;
  while (true) {
#pragma unroll 1
    for (; item < chunk.end; item += kWarps) {
      const Item at(plan, counts, item);
      const FewGroup group = groups[at.group];
      int row = group.first_row + min(lane / 4, group.rows - 1);
      row = by_token ? choice.row_token[row] : row - chunk.first_row;
      const uint16_t* const x = staged_x + row * plan.x_stride + lane % 4 * 16;
      const float* gate_bias = nullptr;
      const float* up_bias = nullptr;
      if (p.biased) {
        const Expert& expert = at.is_shared ? p.shared : p.experts[group.expert];
        gate_bias = expert.gate_bias;
        if (kParts > 1) up_bias = expert.up_bias;
      }
      float total[kParts][4] = {};
      RowScale scales[kParts][2] = {};
#pragma unroll 1
      for (int slice = 0; slice < plan.slices; ++slice) {
        ptx::WaitForCopies<kStages - 1>();
        __syncwarp();
        const std::byte* const from = memory + (warp * kStages + stage) * Stage::kBytes;
        const OneSlice<kFormats> parts[2] = {{from, lane},
                                             {from + (kParts - 1) * kSliceBytes, lane}};
        if (slice + 1 == plan.slices) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const auto* const row_scales =
                reinterpret_cast<const float*>(from + Stage::kScalesAt + part * Stage::kScaleBytes);
            const float* const bias = part == 0 ? gate_bias : up_bias;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int of_tile = lane / 4 + 8 * half;
              scales[part][half] = {row_scales[of_tile],
                                    bias == nullptr ? 0.0f : bias[at.tile * kTileRows + of_tile]};
            }
          }
        }
        __syncwarp();
        fill(stage);
        stage = stage + 1 == kStages ? 0 : stage + 1;
        float sum[kParts][4] = {};
        uint4 columns[kSliceTiles][2];
        const auto load = [&](int i) {
          const auto* const at =
              reinterpret_cast<const uint4*>(x + (slice * kSliceTiles + i) * kTileColumns);
          columns[i][0] = at[0];
          columns[i][1] = at[1];
        };
        MultiplyParts<kFormats, kParts, kWhole>(
            parts, min(plan.k_tiles - slice * kSliceTiles, kSliceTiles), columns, load, [](int) {},
            sum);
        AddSlice(sum, total);
      }
      StoreHidden<kParts>(p, group, at.tile, at.is_shared ? p.shared_f : p.f, scales, total, lane);
    }
    if (chunk.end == end) break;
    __syncthreads();
    chunk = next_chunk(chunk.end);
    LoadRows<kWarps>(p, plan, choice.row_token + chunk.first_row, chunk.rows, staged_x);
    __syncthreads();
  }
}

template <Formats kFormats, int kParts, bool kWhole>
auto KernelOf(int warps) {
  return warps == kFewWarps ? FewGateUpKernel<kFormats, kParts, kWhole, kFewWarps>
                            : FewGateUpKernel<kFormats, kParts, kWhole, kMoreWarps>;
}
template <Formats kFormats, int kParts>
auto KernelOf(bool whole, int warps) {
  return whole ? KernelOf<kFormats, kParts, true>(warps) : KernelOf<kFormats, kParts, false>(warps);
}
template <Formats kFormats>
auto KernelOf(const FewParams& p, bool whole, int warps) {
  return p.activation.gated() ? KernelOf<kFormats, 2>(whole, warps)
                              : KernelOf<kFormats, 1>(whole, warps);
}

int StageBytes(const FewParams& p, const WeightSet& set) {
  return (p.activation.gated() ? 2 : 1) *
         (set.slice_bytes + kTileRows * static_cast<int>(sizeof(float)));
}

// False where shared memory is too small.
bool MakePlan(const FewParams& p, const FewSets& sets, int warps, Plan* plan) {
  const WeightSet& set = sets.gate_up;
  plan->slices = set.slices;
  plan->k_tiles = set.like.k_tiles;
  plan->tile_bytes = set.tile_bytes;
  plan->routed_tiles = p.f / kTileRows;
  plan->shared_tiles = p.shared_f / kTileRows;
  const auto inverse = [](int tiles) {
    return tiles == 0 ? 0 : static_cast<uint32_t>(((uint64_t{1} << 32) + tiles - 1) / tiles);
  };
  plan->routed_inverse = inverse(plan->routed_tiles);
  plan->shared_inverse = inverse(plan->shared_tiles);
  // Lanes of neighbouring rows read from different banks.
  plan->x_stride = p.d + 8;
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  take(std::max(int64_t{warps} * kStages * StageBytes(p, set),
                int64_t{sizeof(float)} * ChooseScratch(p)));
  plan->x_at = take(int64_t{2} * StagedRows(p.t) * plan->x_stride);
  FewChoice ignored;
  plan->choice_at = take(PlaceChoice(nullptr, p, false, &ignored));
  // More than half, so that no multiprocessor takes two blocks while another has none.
  plan->shared_bytes = std::max(used, static_cast<uint32_t>(WholeSplit() / 2));
  return used <= static_cast<uint32_t>(CurrentDevice().shared_memory_per_block);
}

// Returns the warps of a block; 0 where shared memory is too small for any plan.
int MakePlan(const FewParams& p, const FewSets& sets, Plan* plan) {
  if (p.t > kBesideTokens && p.t <= kFewRows && MakePlan(p, sets, kMoreWarps, plan))
    return kMoreWarps;
  return MakePlan(p, sets, kFewWarps, plan) ? kFewWarps : 0;
}

// Row tiles of down are what its blocks share out: many tokens go this way where they fill nearly
// all multiprocessors.
bool FillsMultiprocessors(int row_tiles) {
  const int blocks = CurrentDevice().multiprocessors;
  const int rounds = (row_tiles + blocks - 1) / blocks;
  return row_tiles * 10 >= rounds * blocks * 9;
}

}  // namespace

bool FewTakes(const FewParams& p, const FewSets& sets) {
  const auto like = [](const WeightSet& set, const WeightSet& other) {
    return set.slices > 0 && set.uniform && set.scales_follow &&
           (other.slices == 0 ||
            (other.uniform && other.scales_follow && other.like.format == set.like.format));
  };
  if (!sets.stacked || p.t > kFewTokens || p.routing.experts > kFewExperts ||
      p.t * p.routing.top_k > kFewRows * p.routing.experts)
    return false;
  if (!like(sets.gate_up, sets.shared_gate_up) || !like(sets.down, sets.shared_down) ||
      sets.gate_up.like.format != sets.down.like.format || FormatsOf(sets.gate_up) == Formats::kAny)
    return false;
  if (p.f % kTileRows != 0 || p.shared_f % kTileRows != 0 ||
      (p.shared_f > 0 && sets.shared_gate_up.like.k_tiles != sets.gate_up.like.k_tiles))
    return false;
  if (p.t > kFewRows && !FillsMultiprocessors(p.d / kTileRows)) return false;
  Plan ignored;
  return MakePlan(p, sets, &ignored) > 0 && FewDownFits(p, sets);
}

int64_t FewGateUpSharedBytes(const FewParams& p, const FewSets& sets) {
  Plan plan;
  MakePlan(p, sets, &plan);
  return plan.shared_bytes;
}

void FewGateUp(const OpContext& context, const FewParams& p, const FewSets& sets) {
  Plan plan;
  const int warps = MakePlan(p, sets, &plan);
  const bool whole = plan.k_tiles % kSliceTiles == 0;
  const auto kernel = FormatsOf(sets.gate_up) == Formats::kNvfp4
                          ? KernelOf<Formats::kNvfp4>(p, whole, warps)
                          : KernelOf<Formats::kMxfp4>(p, whole, warps);
  PreferSharedMemory(kernel);
  LaunchPdl(kernel, static_cast<unsigned>(CurrentDevice().multiprocessors), warps * 32,
            plan.shared_bytes, StreamOf(context), p, plan);
}

}  // namespace nibble::kernels::cuda::moe
