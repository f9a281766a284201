// The block-scaled FP4 MMA of a whole warp on the host: 32 lanes' registers in, C updated. For
// tests; what the instruction does with fragments and scale selectors: block_scaled.h.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/ptx/block_scaled.h"

namespace nibble::kernels::cuda::ptx {

struct WarpRegisters {
  std::array<std::array<uint32_t, 4>, 32> a = {};
  std::array<std::array<uint32_t, 2>, 32> b = {};
  std::array<uint32_t, 32> scales_a = {};
  std::array<uint32_t, 32> scales_b = {};
  std::array<std::array<float, 4>, 32> c = {};
};

inline void EmulateBlockScaledMma(WarpRegisters& warp, int selector_a, int selector_b) {
  uint8_t a[16][64] = {};
  uint8_t b[64][8] = {};
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < 32; ++v) {
      const FragmentPlace at = BlockScaledA(lane, v);
      a[at.row][at.column] = warp.a[lane][v / 8] >> (4 * (v % 8)) & 15u;
    }
    for (int v = 0; v < 16; ++v) {
      const FragmentPlace at = BlockScaledB(lane, v);
      b[at.row][at.column] = warp.b[lane][v / 8] >> (4 * (v % 8)) & 15u;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < 4; ++v) {
      const FragmentPlace at = BlockScaledC(lane, v);
      int dots[kScaleGroups] = {};
      for (int k = 0; k < 64; ++k)
        dots[k / kScaleGroup] += E2M1Doubled(a[at.row][k]) * E2M1Doubled(b[k][at.column]);
      warp.c[lane][v] =
          BlockScaledSum(warp.c[lane][v], dots, warp.scales_a[ScaleLaneA(at.row, selector_a)],
                         warp.scales_b[ScaleLaneB(at.column, selector_b)]);
    }
  }
}

}  // namespace nibble::kernels::cuda::ptx
