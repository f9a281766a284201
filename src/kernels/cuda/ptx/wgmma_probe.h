// Counts outputs in which a chain of warpgroup MMAs differs from the same chain of warp MMAs: what
// the one summation order of weight_tiles.h rests on. For wgmma_test.cc.
#pragma once

#include <cstdint>

namespace nibble::kernels::cuda {

// How the exponents of A and B are drawn.
enum class ProbeExponents : int { kEqual, kNarrow, kWide, kSubnormal };
inline constexpr int kProbeExponents = 4;

struct ProbeResult {
  uint64_t outputs = 0;
  uint64_t different = 0;
  uint64_t different_from_fma = 0;  // from a chain of scalar FMAs: shows that the data can tell
};

// `blocks` matrices A (64, 16 chain), B (16 chain, n) each; n is 8, 32, 64 or 128. Waits.
ProbeResult ProbeWgmma(int n, int chain, ProbeExponents exponents, int blocks, uint64_t seed);

}  // namespace nibble::kernels::cuda
