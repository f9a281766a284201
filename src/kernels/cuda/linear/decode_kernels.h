// The instances of decode.cuh, one file per group of formats, and what planning a launch needs to
// know of them.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"

namespace nibble::kernels::cuda::decode {

inline constexpr int kWarps = 16;
inline constexpr int kThreads = kWarps * 32;

// A stage is 2 KB of codes and the scales of its slice.
inline constexpr int kStageVectors = 4;
inline constexpr int kStageCodes = kStageVectors * 512;

constexpr int StageBytes(TileFormat format, int group_columns) {
  return kStageCodes + ScaleBytes(format, group_columns);
}

// DecodeKernel of 1, 2, 4 or 8 token tiles and 1 or 2 stages.
const void* Nvfp4Kernel(int token_tiles, int stages);
const void* Bf16Kernel(int token_tiles, int stages);
const void* Mxfp4Kernel(int token_tiles, int stages);
const void* Fp8Kernel(int token_tiles, int stages);
const void* Mxfp8Kernel(int token_tiles, int stages);
const void* Fp8GroupsKernel(int token_tiles, int stages);
const void* Int4Kernel(int token_tiles, int stages);
const void* Int8Kernel(int token_tiles, int stages);

}  // namespace nibble::kernels::cuda::decode
