// Where queries begin to grow, and by how much: values worked out by hand.
#include "models/layers/query_scale.h"

#include <gtest/gtest.h>

namespace nibble::models {
namespace {

TEST(QueryScale, GrowsAtTheEndOfEveryInterval) {
  QueryScale scale(0.1, 8192, 1);
  ASSERT_TRUE(scale.Build(3 * 8192, HostDevice()));
  EXPECT_EQ(scale.table()[8190], 1.0f);
  EXPECT_NEAR(scale.table()[8191], 1.0693147, 1e-6);   // 1 + 0.1 ln 2
  EXPECT_NEAR(scale.table()[16383], 1.1098612, 1e-6);  // 1 + 0.1 ln 3
}

TEST(QueryScale, WithoutAnOffsetGrowsOnePositionLater) {
  QueryScale scale(0.1, 16384, 0);
  ASSERT_TRUE(scale.Build(20000, HostDevice()));
  EXPECT_EQ(scale.table()[16383], 1.0f);
  EXPECT_NEAR(scale.table()[16384], 1.0693147, 1e-6);
}

TEST(QueryScale, TheFirstLayerBuildsTheTable) {
  QueryScale scale(0.1, 4, 0);
  ASSERT_TRUE(scale.Build(10, HostDevice()));
  ASSERT_TRUE(scale.Build(10, HostDevice()));
  EXPECT_EQ(scale.table().size(), 10u);
}

}  // namespace
}  // namespace nibble::models
