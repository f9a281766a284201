// A cluster of kPeers blocks owns as many row tiles of down at a time. Each block multiplies them
// all by its share of the groups, which its warps take in turns, and sends finished outputs to the
// block that owns the row tile. There they wait in shared memory, of all rows of h; the block's
// threads add them, per token and row, by ascending expert. Nobody else writes there, so the order
// is fixed.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/few_choice.cuh"
#include "kernels/cuda/moe/few_slice.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/peer_store.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

// Slices under way per warp, at most: as many as shared memory has room for.
constexpr int kMostStages = 4;
// Where the block has a multiprocessor of its own: more, which hide the time that many rows of h
// take.
constexpr int kStagesAlone = 3;
// Of a slice's columns of one row of h, in bytes: lanes of neighbouring rows read from different
// banks.
constexpr int kInputStride = kSliceColumns * 2 + 16;
// Elements of the residual stream that a thread adds to.
template <int kThreads>
constexpr int kOwnOutputs = (kFewTokens * kTileRows + kThreads - 1) / kThreads;

struct Plan {
  int32_t routed_slices = 0;
  int32_t shared_slices = 0;
  int32_t routed_k_tiles = 0;
  int32_t shared_k_tiles = 0;
  int32_t routed_tile_bytes = 0;
  int32_t shared_tile_bytes = 0;
  int32_t ring_bytes = 0;
  // Shared memory, in bytes from its begin; the rings come first.
  uint32_t outputs_at = 0;  // (rows of h, 16)
  uint32_t choice_at = 0;
  uint32_t shared_bytes = 0;
};

// A slice of each row tile with its columns of h, and with the last one row scales.
template <Formats kFormats, int kPeers>
struct StageOf {
  static constexpr int kScaleBytes = kTileRows * static_cast<int>(sizeof(float));
  static constexpr int kScalesAt = kPeers * kSliceBytesOf<kFormats>;
  static constexpr int kInputsAt = kScalesAt + kPeers * kScaleBytes;
  static constexpr int Bytes(int rows) { return kInputsAt + rows * kInputStride; }
};

// What is to be multiplied: a set of row tiles of one group's expert.
struct Unit {
  int set;
  int group;

  // begin, end: of the warp's groups.
  template <int kWarps>
  __device__ __forceinline__ void Step(int begin, int end) {
    group += kWarps;
    if (group >= end) group = begin, ++set;
  }
};

// Until at most `pending` groups of copies are under way.
__device__ __forceinline__ void WaitForCopiesBut(int pending) {
  static_assert(kMostStages == 4);
  if (pending == 0) {
    ptx::WaitForCopies<0>();
  } else if (pending == 1) {
    ptx::WaitForCopies<1>();
  } else if (pending == 2) {
    ptx::WaitForCopies<2>();
  } else {
    ptx::WaitForCopies<3>();
  }
}

__device__ __forceinline__ float SumRows(const FewParams& p, const FewChoice& choice,
                                         const float* outputs, int token, int shared_row) {
  const int top_k = p.routing.top_k;
  const int16_t* const rows = choice.rows + token * top_k;
  const float* const weights = choice.weights + token * top_k;
  float sum = 0.0f;
#pragma unroll 4
  for (int j = 0; j < top_k; ++j) {
    const int row = rows[j];
    if (row >= 0) sum = __fmaf_rn(weights[j], outputs[row * kTileRows], sum);
  }
  if (p.shared_f > 0)
    sum = __fmaf_rn(choice.shared_weights[token], outputs[(shared_row + token) * kTileRows], sum);
  return sum;
}

template <int kPeers>
__device__ __forceinline__ void SyncPeers() {
  if constexpr (kPeers > 1) {
    ptx::SyncCluster();
  } else {
    __syncthreads();
  }
}

// kWhole: F of all experts is a multiple of a slice.
template <Formats kFormats, int kPeers, bool kWhole, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarps == kFewWarps ? 2 : 1)
    FewDownKernel(const __grid_constant__ FewParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  using Stage = StageOf<kFormats, kPeers>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kSliceBytes = kSliceBytesOf<kFormats>;
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = threadIdx.x % 32;
  const int row_tiles = p.d / kTileRows, sets = row_tiles / kPeers;
  const int clusters = static_cast<int>(gridDim.x) / kPeers;
  const int cluster = static_cast<int>(blockIdx.x) / kPeers;
  const int rank = static_cast<int>(blockIdx.x) % kPeers;
  const int first_set = sets * cluster / clusters, end_set = sets * (cluster + 1) / clusters;
  if (first_set == end_set) return;
  if constexpr (kPeers > 1) ptx::ArriveAtCluster();
  FewChoice choice;
  PlaceChoice(memory + plan.choice_at, p, true, &choice);
  auto* const outputs = reinterpret_cast<float*>(memory + plan.outputs_at);
  const OwnExperts<kThreads> own(p.down, p.routing.experts);
  ClearMasks<kThreads>(p, choice);
  // There before the wait: few_tokens.h.
  if (kWarps == kFewWarps && p.t <= kBesideTokens) {
    Choose<kThreads, true>(p, choice, reinterpret_cast<float*>(memory));
  } else {
    LoadChosen<kThreads, true>(p, choice);
  }
  if (static_cast<int>(threadIdx.x) < p.t)
    choice.shared_weights[threadIdx.x] =
        p.shared_logits != nullptr ? Sigmoid(__ldcg(p.shared_logits + threadIdx.x)) : 1.0f;
  const FewCounts counts = FindGroups<kThreads, true>(p, choice, own, p.shared.down.data);
  const FewGroup* const groups = choice.groups;
  const int begin_group = counts.groups * rank / kPeers + warp;
  const int end_group = counts.groups * (rank + 1) / kPeers;

  int rows = 1;  // of a group, at most
#pragma unroll 1
  for (int g = lane; g < counts.groups; g += 32) rows = max(rows, groups[g].rows);
  rows = __reduce_max_sync(kAllLanes, rows);
  const int stage_bytes = Stage::Bytes(rows);
  const int stages = min(kMostStages, plan.ring_bytes / (kWarps * stage_bytes));
  const int ring = warp * stages * stage_bytes;
  const auto slices_of = [&](int group) {
    return group < counts.routed_groups ? plan.routed_slices : plan.shared_slices;
  };
  const auto tiles_of = [&](int group, int slice) {
    const int tiles = group < counts.routed_groups ? plan.routed_k_tiles : plan.shared_k_tiles;
    return min(tiles - slice * kSliceTiles, kSliceTiles);
  };
  const auto tile_bytes_of = [&](int group) {
    return group < counts.routed_groups ? plan.routed_tile_bytes : plan.shared_tile_bytes;
  };
  Unit now = {begin_group < end_group ? first_set : end_set, begin_group};
  // What is copied next.
  struct Ahead {
    Unit unit;
    int slice;
    const std::byte* data;  // the lane's bytes of the slice of the first row tile
  };
  const auto enter = [&](Ahead& ahead) {
    ahead.slice = 0;
    if (ahead.unit.set < end_set)
      ahead.data = groups[ahead.unit.group].data +
                   (ahead.unit.set * kPeers * tile_bytes_of(ahead.unit.group) + lane * 16);
  };
  const auto step = [&](Ahead& ahead) {
    ahead.data += kSliceBytes;
    if (++ahead.slice < slices_of(ahead.unit.group)) return;
    ahead.unit.Step<kWarps>(begin_group, end_group);
    enter(ahead);
  };
  const uint32_t ring_address = ptx::SharedAddress(memory) + ring;
  const auto copy_weights = [&](const Ahead& ahead, int stage) {
    const auto [set, group] = ahead.unit;
    const int tile_bytes = tile_bytes_of(group), tiles = tiles_of(group, ahead.slice);
    const uint32_t to = ring_address + stage * stage_bytes;
#pragma unroll
    for (int part = 0; part < kPeers; ++part)
      CopyFewSlice<kFormats, kWhole>(to + part * kSliceBytes + lane * 16,
                                     ahead.data + part * tile_bytes, tiles, lane);
    if (ahead.slice + 1 < slices_of(group)) return;
    // They lie behind all tiles.
    const auto* const scales =
        reinterpret_cast<const float*>(groups[group].data + row_tiles * tile_bytes);
#pragma unroll
    for (int part = 0; part < kPeers; ++part)
      CopyRowScales(to + Stage::kScalesAt + part * Stage::kScaleBytes,
                    scales + (set * kPeers + part) * kTileRows, lane);
  };
  const auto copy_inputs = [&](const Ahead& ahead, int stage) {
    const FewGroup& group = groups[ahead.unit.group];
    const int column = lane * 8;
    if (!kWhole && column >= tiles_of(ahead.unit.group, ahead.slice) * kTileColumns) return;
    uint32_t to = ring_address + stage * stage_bytes + Stage::kInputsAt + lane * 16;
    const uint16_t* from =
        p.h + group.first_row * p.h_stride + ahead.slice * kSliceColumns + column;
#pragma unroll 1
    for (int row = 0; row < group.rows; ++row, to += kInputStride, from += p.h_stride)
      ptx::CopyAsync16To(to, from);
  };
  Ahead first = {now};
  enter(first);
  Ahead ahead = first;
#pragma unroll 1
  for (int s = 0; s < stages && ahead.unit.set < end_set; ++s) {
    copy_weights(ahead, s);
    step(ahead);
  }
  // Written by nobody since the router's launch; past L1, as nothing was waited for.
  uint16_t before[kOwnOutputs<kThreads>] = {};
  if (p.add) {
#pragma unroll
    for (int i = 0; i < kOwnOutputs<kThreads>; ++i) {
      const int output = static_cast<int>(threadIdx.x) + i * kThreads;
      if (output < p.t * kTileRows)
        before[i] = __ldcg(p.out + output / kTileRows * p.d +
                           (first_set * kPeers + rank) * kTileRows + output % kTileRows);
    }
  }
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
#pragma unroll 1
  for (int s = 0; s < stages; ++s) {
    if (first.unit.set < end_set) {
      copy_inputs(first, s);
      step(first);
    }
    ptx::CommitCopies();
  }
  if constexpr (kPeers > 1) ptx::WaitForCluster();

  int stage = 0;
  for (int set = first_set; set < end_set; ++set) {
#pragma unroll 1
    while (now.set == set) {
      const FewGroup group = groups[now.group];
      const int slices = slices_of(now.group);
      const float* bias = nullptr;
      if (p.biased)
        bias = now.group >= counts.routed_groups ? p.shared.down_bias
                                                 : p.experts[group.expert].down_bias;
      float total[kPeers][4] = {};
      RowScale scales[kPeers][2] = {};
#pragma unroll 1
      for (int slice = 0; slice < slices; ++slice) {
        WaitForCopiesBut(stages - 1);
        __syncwarp();
        const std::byte* const from = memory + ring + stage * stage_bytes;
        const OneSlice<kFormats> weights[2] = {{from, lane},
                                               {from + (kPeers - 1) * kSliceBytes, lane}};
        if (slice + 1 == slices) {
#pragma unroll
          for (int part = 0; part < kPeers; ++part) {
            const auto* const row_scales =
                reinterpret_cast<const float*>(from + Stage::kScalesAt + part * Stage::kScaleBytes);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int row = lane / 4 + 8 * half;
              scales[part][half] = {
                  row_scales[row],
                  bias == nullptr ? 0.0f : bias[(set * kPeers + part) * kTileRows + row]};
            }
          }
        }
        __syncwarp();
        const bool more = ahead.unit.set < end_set;
        if (more) copy_weights(ahead, stage);
        const std::byte* const inputs =
            from + Stage::kInputsAt + min(lane / 4, group.rows - 1) * kInputStride + lane % 4 * 32;
        uint4 columns[kSliceTiles][2];
        const auto load = [&](int i) {
          const auto* const at = reinterpret_cast<const uint4*>(inputs + i * kTileColumns * 2);
          columns[i][0] = at[0];
          columns[i][1] = at[1];
        };
        float sum[kPeers][4] = {};
        MultiplyParts<kFormats, kPeers, kWhole>(
            weights, tiles_of(now.group, slice), columns, load, [](int) {}, sum);
        AddSlice(sum, total);
        __syncwarp();
        if (more) {
          copy_inputs(ahead, stage);
          step(ahead);
        }
        ptx::CommitCopies();
        stage = stage + 1 == stages ? 0 : stage + 1;
      }
#pragma unroll
      for (int part = 0; part < kPeers; ++part) {
        const uint32_t owner = ptx::PeerAddress(outputs, part);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = lane % 4 * 2 + c;
          if (column >= group.rows) continue;
          const uint32_t to =
              owner + ((group.first_row + column) * kTileRows + lane / 4) * sizeof(float);
          ptx::StoreToPeer(to, scales[part][0].Apply(total[part][c]));
          ptx::StoreToPeer(to + 8 * sizeof(float), scales[part][1].Apply(total[part][2 + c]));
        }
      }
      now.Step<kWarps>(begin_group, end_group);
    }
    SyncPeers<kPeers>();
    const int shared_row = p.shared_f > 0 ? groups[counts.routed_groups].first_row : 0;
    const int tile = set * kPeers + rank;
#pragma unroll
    for (int i = 0; i < kOwnOutputs<kThreads>; ++i) {
      const int output = static_cast<int>(threadIdx.x) + i * kThreads;
      if (output >= p.t * kTileRows) break;
      const int token = output / kTileRows, row = output % kTileRows;
      const int64_t at = int64_t{token} * p.d + tile * kTileRows + row;
      if (p.add && set > first_set) before[i] = p.out[at];
      const float y = SumRows(p, choice, outputs + row, token, shared_row);
      if (p.out_f32 != nullptr) {
        p.out_f32[at] = y;
      } else {
        const float sum = p.add ? ptx::FirstBf16(before[i]) + ptx::RoundBf16(y) : y;
        p.out[at] = static_cast<uint16_t>(ptx::PackBf16(sum, 0.0f));
      }
    }
    if (set + 1 < end_set) SyncPeers<kPeers>();
  }
}

// Blocks of a cluster: two, which halves what h costs, where there are clusters.
int Peers() { return CurrentDevice().major >= 9 ? 2 : 1; }

template <Formats kFormats, int kPeers, bool kWhole>
auto KernelOf(int warps) {
  return warps == kFewWarps ? FewDownKernel<kFormats, kPeers, kWhole, kFewWarps>
                            : FewDownKernel<kFormats, kPeers, kWhole, kMoreWarps>;
}
template <Formats kFormats, int kPeers>
auto KernelOf(bool whole, int warps) {
  return whole ? KernelOf<kFormats, kPeers, true>(warps) : KernelOf<kFormats, kPeers, false>(warps);
}
template <Formats kFormats>
auto KernelOf(int peers, bool whole, int warps) {
  return peers == 2 ? KernelOf<kFormats, 2>(whole, warps) : KernelOf<kFormats, 1>(whole, warps);
}

// Of shared memory: a stage of every warp.
int64_t LevelBytes(const FewParams& p, const FewSets& sets, int warps) {
  return warps * (Peers() * (sets.down.slice_bytes + kTileRows * int64_t{sizeof(float)}) +
                  GroupRows(p) * int64_t{kInputStride});
}

Plan MakePlan(const FewParams& p, const FewSets& sets, int warps) {
  Plan plan;
  plan.routed_slices = sets.down.slices;
  plan.shared_slices = p.shared_f > 0 ? sets.shared_down.slices : 0;
  plan.routed_k_tiles = sets.down.like.k_tiles;
  plan.shared_k_tiles = sets.shared_down.like.k_tiles;
  plan.routed_tile_bytes = sets.down.tile_bytes;
  plan.shared_tile_bytes = sets.shared_down.tile_bytes;
  const int64_t rows = int64_t{p.t} * (p.routing.top_k + (p.shared_f > 0 ? 1 : 0));
  const int64_t level = LevelBytes(p, sets, warps);
  const auto scratch = int64_t{sizeof(float)} * ChooseScratch(p);
  const int64_t outputs = rows * kTileRows * int64_t{sizeof(float)};
  FewChoice ignored;
  const int64_t choice = PlaceChoice(nullptr, p, true, &ignored);
  // Of what FewGateUp leaves, where that is enough; or alone.
  const int64_t whole = WholeSplit() - kReservedPerCta - outputs - choice - 64;
  const int64_t beside = whole - kReservedPerCta - FewGateUpSharedBytes(p, sets);
  const bool alone = p.t > kBesideTokens || beside < level;
  plan.ring_bytes = static_cast<int32_t>(
      std::max({level, scratch, alone ? std::min(whole, kStagesAlone * level) : beside}) / 16 * 16);
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  take(plan.ring_bytes);
  plan.outputs_at = take(outputs);
  plan.choice_at = take(choice);
  // No multiprocessor takes two blocks.
  plan.shared_bytes = alone ? std::max(used, static_cast<uint32_t>(WholeSplit() / 2)) : used;
  return plan;
}

// Warps of a block: more where there are groups for them and each has two stages at least.
int WarpsOf(const FewParams& p, const FewSets& sets) {
  if (p.t <= kFewRows) return kFewWarps;
  const int64_t level = LevelBytes(p, sets, kMoreWarps);
  return MakePlan(p, sets, kMoreWarps).ring_bytes >= 2 * level ? kMoreWarps : kFewWarps;
}

}  // namespace

bool FewDownFits(const FewParams& p, const FewSets& sets) {
  return MakePlan(p, sets, WarpsOf(p, sets)).shared_bytes <=
         static_cast<uint32_t>(CurrentDevice().shared_memory_per_block);
}

void FewDown(const OpContext& context, const FewParams& p, const FewSets& sets) {
  const int peers = Peers(), warps = WarpsOf(p, sets);
  const bool whole =
      (sets.down.like.k_tiles | (p.shared_f > 0 ? sets.shared_down.like.k_tiles : 0)) %
          kSliceTiles ==
      0;
  const auto kernel = FormatsOf(sets.down) == Formats::kNvfp4
                          ? KernelOf<Formats::kNvfp4>(peers, whole, warps)
                          : KernelOf<Formats::kMxfp4>(peers, whole, warps);
  const Plan plan = MakePlan(p, sets, warps);
  PreferSharedMemory(kernel);
  const int blocks = CurrentDevice().multiprocessors / peers * peers;
  LaunchPdlCluster(kernel, static_cast<unsigned>(blocks), warps * 32, static_cast<unsigned>(peers),
                   plan.shared_bytes, StreamOf(context), p, plan);
}

}  // namespace nibble::kernels::cuda::moe
