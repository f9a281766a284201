#include "kernels/cuda_routes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>

namespace nibble::kernels {
namespace {

constexpr std::array<std::string_view, 5> kShipped = {"80", "89", "90a", "100a", "120f"};

TEST(CudaRoutes, EveryGpuFindsItsCubin) {
  struct Case {
    ComputeCapability capability;
    std::string_view cubin;
  };
  for (const auto& [capability, cubin] :
       {Case{{8, 0}, "80"}, Case{{8, 6}, "80"}, Case{{8, 9}, "89"}, Case{{9, 0}, "90a"},
        Case{{10, 0}, "100a"}, Case{{12, 0}, "120f"}, Case{{12, 1}, "120f"},
        // Without code: before Ampere, and B300, whose family 100a leaves out.
        Case{{7, 5}, ""}, Case{{10, 3}, ""}, Case{{11, 0}, ""}})
    EXPECT_EQ(CubinFor(capability, kShipped), cubin) << capability.major << "." << capability.minor;
}

TEST(CudaRoutes, TheMostSpecificCubinWins) {
  constexpr std::array<std::string_view, 4> kTargets = {"120f", "121a", "100f", "100a"};
  EXPECT_EQ(CubinFor({12, 1}, kTargets), "121a");
  EXPECT_EQ(CubinFor({12, 0}, kTargets), "120f");
  EXPECT_EQ(CubinFor({10, 0}, kTargets), "100a");
  EXPECT_EQ(CubinFor({10, 3}, kTargets), "100f");
  EXPECT_EQ(CubinFor({12, 1}, {}), "");
}

bool Serves(ComputeCapability capability, std::string_view op, std::string_view instruction) {
  return std::ranges::any_of(RoutesOf(capability), [&](const KernelRoute& route) {
    return route.op == op && route.kernel.find(instruction) != route.kernel.npos;
  });
}

TEST(CudaRoutes, InstructionsServeWhereTheyExist) {
  for (const ComputeCapability c : {ComputeCapability{8, 0}, {8, 9}, {9, 0}, {10, 0}, {12, 1}}) {
    EXPECT_EQ(Serves(c, "linear", "wgmma"), HasWgmma(c));
    EXPECT_EQ(Serves(c, "linear_w4a4", "FP4"), HasBlockScaledMma(c));
    EXPECT_EQ(Serves(c, "linear_fp8", "wgmma"), HasWgmma(c));
    EXPECT_EQ(Serves(c, "moe", "FP4"), HasBlockScaledMma(c));
    // Every op has a kernel that takes what the others do not.
    for (const std::string_view op : {"linear", "moe", "attention"})
      EXPECT_TRUE(Serves(c, op, "mma.sync"));
  }
}

}  // namespace
}  // namespace nibble::kernels
