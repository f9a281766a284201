#include "kernels/cuda/linear/decode.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"

namespace nibble::kernels::cuda {
namespace {

using decode::kWarps;

int CeilDiv(int a, int b) { return (a + b - 1) / b; }
int RoundUp(int a, int b) { return CeilDiv(a, b) * b; }

// A row tile's sums of one slice, tokens rounded up to a power of two.
int UnitBytes(int m) {
  int slots = 1;
  while (slots < m) slots *= 2;
  return slots * kTileRows * 4;
}

int XBytesOfSlice(int m) { return kSliceColumns * 2 * m; }

// Rounds of partial sums between two reductions, if there is room.
constexpr int kMaxPartialBytes = 16 * 1024;

// The plan with that ring, or chunk_slices == 0 where nothing fits.
DecodePlan PlanWith(const WeightTiles& weight, int m, int stages, int shared_limit) {
  DecodePlan plan;
  plan.blocks = CurrentDevice().multiprocessors;
  plan.stages = stages;
  plan.token_tiles = m <= 8 ? 1 : m <= 16 ? 2 : m <= 32 ? 4 : 8;
  const int tiles = CeilDiv(weight.row_tiles, plan.blocks);
  const int slices = weight.slices();
  const int unit = UnitBytes(m);
  const int ring = kWarps * stages * decode::StageBytes(weight.format, weight.group_columns);
  plan.scale_bytes = 2 * tiles * kTileRows * 4;
  const int room = shared_limit - ring - plan.scale_bytes;
  const int round = kWarps * unit;

  const int x_all = XBytesOfSlice(m) * slices;
  const int all_rounds = CeilDiv(tiles * slices, kWarps);
  const int wanted = std::min(all_rounds, std::max(1, kMaxPartialBytes / round));
  const int rounds = std::min(wanted, (room - x_all - 2 * unit) / round);
  if (rounds >= std::min(wanted, 2)) {
    plan.chunk_slices = slices;
    plan.group_tiles = std::max(tiles, 1);
    plan.partial_units = rounds * kWarps;
    plan.x_bytes = x_all;
    plan.run_bytes = 2 * unit;
  } else {
    plan.group_tiles = std::min(tiles, kWarps);
    plan.run_bytes = plan.group_tiles * unit;
    plan.partial_units = kWarps * std::max(1, std::min(2, kMaxPartialBytes / round));
    const int left = room - plan.run_bytes - plan.partial_units * unit;
    plan.chunk_slices = std::min(slices, std::max(0, left / XBytesOfSlice(m)));
    plan.x_bytes = plan.chunk_slices * XBytesOfSlice(m);
  }
  plan.shared_bytes =
      plan.x_bytes + plan.run_bytes + plan.scale_bytes + ring + plan.partial_units * unit;
  return plan;
}

const void* KernelOf(const WeightTiles& weight, const DecodePlan& plan) {
  switch (weight.format) {
    case TileFormat::kNvfp4:
      return decode::Nvfp4Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kMxfp4:
      return decode::Mxfp4Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kBf16:
      return decode::Bf16Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kFp8:
      return decode::Fp8Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kMxfp8:
      return decode::Mxfp8Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kFp8Groups:
      return decode::Fp8GroupsKernel(plan.token_tiles, plan.stages);
    case TileFormat::kInt4:
      return decode::Int4Kernel(plan.token_tiles, plan.stages);
    case TileFormat::kInt8:
      return decode::Int8Kernel(plan.token_tiles, plan.stages);
  }
  return nullptr;
}

}  // namespace

DecodePlan PlanDecode(const WeightTiles& weight, int m, int stages) {
  const int whole = CurrentDevice().shared_memory_per_block;
  const int half = (whole + 1024) / 2 - 1024;  // the system takes 1 KB of each CTA
  const int limit = m <= 8 ? half : whole;
  DecodePlan plan;
  for (const int count : {2, 1}) {
    if (stages != 0 && stages != count) continue;
    plan = PlanWith(weight, m, count, limit);
    if (plan.chunk_slices == weight.slices()) return plan;
  }
  if (plan.chunk_slices == 0) plan = PlanWith(weight, m, 1, whole);
  return plan;
}

int DecodeBlocksPerMultiprocessor(const WeightTiles& weight, const DecodePlan& plan) {
  const void* kernel = KernelOf(weight, plan);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, decode::kThreads,
                                                plan.shared_bytes);
  return blocks;
}

void LaunchDecode(const DecodeArgs& args, const DecodePlan& plan, void* stream) {
  const auto kernel = reinterpret_cast<void (*)(DecodeArgs, DecodePlan)>(
      const_cast<void*>(KernelOf(args.weight, plan)));
  LaunchPdl(kernel, dim3(plan.blocks), dim3(decode::kThreads), plan.shared_bytes,
            static_cast<cudaStream_t>(stream), args, plan);
}

}  // namespace nibble::kernels::cuda
