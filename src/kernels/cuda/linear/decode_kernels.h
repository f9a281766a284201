// The instances of decode.cuh, one file per format, and what planning a launch needs to know.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"

namespace nibble::kernels::cuda::decode {

inline constexpr int kWarps = 16;
inline constexpr int kThreads = kWarps * 32;

constexpr int VectorsPerTile(TileFormat format) { return CodeBytes(format) / 512; }

// Row tiles of a unit: two where their products share what is read of x, and registers allow it.
constexpr int RowTilesOfUnit(TileFormat format, int token_tiles) {
  return token_tiles == 1 || (token_tiles == 8 && HasGroups(format)) ? 1 : 2;
}

// Whether x is brought into the order in which lanes read it, by a kernel before.
constexpr bool PreparesX(int token_tiles) { return token_tiles >= 4; }

// 512-byte vectors of each row tile in a stage.
constexpr int StageVectors(TileFormat format, int token_tiles) {
  const int wanted = token_tiles == 1 ? 4 : 2;
  return wanted < VectorsPerTile(format) ? VectorsPerTile(format) : wanted;
}

// Codes and the slice's scales, of every row tile.
constexpr int StageBytes(TileFormat format, int token_tiles, int group_columns) {
  return RowTilesOfUnit(format, token_tiles) *
         (StageVectors(format, token_tiles) * 512 + ScaleBytes(format, group_columns));
}

// Of rows of x in shared memory: the lanes of two tokens meet other banks.
constexpr int StagedStride(int k) { return k + 8; }

// Token tiles whose slice sums are exchanged at a time.
constexpr int ReducedTokenTiles(int token_tiles) { return token_tiles == 8 ? 2 : token_tiles; }

// Whether a kernel reads x where it lies; or brings it into shared memory first and perhaps norms
// it, up to 8 tokens; or has a weight and an x per head.
enum class Input : uint8_t { kPlain, kStaged, kOfHeads };

// DecodeKernel of 1 token tile and 1 or 2 stages, or of 2, 4 or 8 and 2 stages; HeadDecodeKernel of
// 1 and 1, or 2 and 2. Null for what has no instance.
const void* Nvfp4Kernel(int token_tiles, int stages, Input input);
const void* Mxfp4Kernel(int token_tiles, int stages, Input input);
const void* Bf16Kernel(int token_tiles, int stages, Input input);
const void* Fp8Kernel(int token_tiles, int stages, Input input);
const void* Mxfp8Kernel(int token_tiles, int stages, Input input);
const void* Fp8GroupsKernel(int token_tiles, int stages, Input input);
const void* Int4Kernel(int token_tiles, int stages, Input input);
const void* Int8Kernel(int token_tiles, int stages, Input input);

}  // namespace nibble::kernels::cuda::decode
