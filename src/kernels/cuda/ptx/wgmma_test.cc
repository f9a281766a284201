#include "kernels/cuda/ptx/wgmma_probe.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

namespace nibble::kernels::cuda {
namespace {

bool HopperIsPresent() {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
         major == 9;
}

// The same sums whichever of the two instructions computes them, single atoms and slices of 16.
TEST(Wgmma, HasTheBitsOfWarpMmas) {
  if (!HopperIsPresent()) GTEST_SKIP() << "no GPU of compute capability 9.0";
  for (int n : {8, 32, 64, 128})
    for (int chain : {1, 16})
      for (int exponents = 0; exponents < kProbeExponents; ++exponents) {
        const int blocks = (1 << 18) / n;
        const ProbeResult result =
            ProbeWgmma(n, chain, static_cast<ProbeExponents>(exponents), blocks, 77 * n + chain);
        EXPECT_EQ(result.different, 0u)
            << "n " << n << ", chain " << chain << ", exponents " << exponents;
        // Sums of products of equal exponents are exact in any order.
        if (static_cast<ProbeExponents>(exponents) != ProbeExponents::kEqual) {
          EXPECT_GT(result.different_from_fma, 0u);
        }
      }
}

}  // namespace
}  // namespace nibble::kernels::cuda
