// Goals of the linear benchmark: which figures have one, and what they are compared with.
#include "kernels/linear_goals.h"

#include <gtest/gtest.h>

namespace nibble::kernels {
namespace {

constexpr LinearProbes kProbes = {.int8 = 1000, .bf16 = 100, .best_int8 = 1000};

LinearMeasurement Measured(const char* kernel, int64_t m, double seconds, int threads = 1) {
  return {.kernel = kernel,
          .threads = threads,
          .m = m,
          .seconds = seconds,
          .bytes_per_second = 87,
          .ops_per_second = 590,
          .read = 100,
          .peak = 1000};
}

TEST(LinearGoals, OneTokenIsComparedWithTheReadProbe) {
  const auto codes = VerdictsOf(Measured("nvfp4 x int8", 1, 1), kProbes, true, {});
  ASSERT_EQ(codes.size(), 1u);
  EXPECT_EQ(codes[0].ceiling, LinearCeiling::kRead);
  EXPECT_FALSE(codes[0].met()) << "87 % of 88";
  const auto other = VerdictsOf(Measured("fp8 x bf16", 1, 1), kProbes, true, {});
  ASSERT_EQ(other.size(), 1u);
  EXPECT_TRUE(other[0].met()) << "87 % of 85";
}

TEST(LinearGoals, FourTokensAndTwoThreadsLookUpWhatWasMeasuredBefore) {
  const LinearMeasurement earlier[] = {Measured("nvfp4 x int8", 1, 1.0),
                                       Measured("nvfp4 x int8", 512, 1.0)};
  const auto four = VerdictsOf(Measured("nvfp4 x int8", 4, 1.1), kProbes, true, earlier);
  ASSERT_EQ(four.size(), 1u);
  EXPECT_EQ(four[0].ceiling, LinearCeiling::kTimeOfOneToken);
  EXPECT_TRUE(four[0].met());
  const auto threads = VerdictsOf(Measured("nvfp4 x int8", 512, 0.5, 2), kProbes, true, earlier);
  ASSERT_EQ(threads.size(), 2u);
  EXPECT_EQ(threads[1].ceiling, LinearCeiling::kOneThread);
  EXPECT_DOUBLE_EQ(threads[1].reached, 2.0);
}

TEST(LinearGoals, NarrowVectorsAreComparedWithTheBestInt8Probe) {
  const auto narrow = VerdictsOf(Measured("mxfp4 x int8", 512, 1), kProbes, false, {});
  ASSERT_EQ(narrow.size(), 1u);
  EXPECT_EQ(narrow[0].ceiling, LinearCeiling::kInt8);
  EXPECT_EQ(narrow[0].goal, 0.19);
  EXPECT_TRUE(VerdictsOf(Measured("int4 g128 x int8", 128, 1), kProbes, true, {}).empty());
}

}  // namespace
}  // namespace nibble::kernels
