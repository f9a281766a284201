#include "kernels/even_routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "kernels/likely_hits.h"

namespace nibble::kernels {
namespace {

// As many experts as random choices hit: E (1 - (1 - k / E)^T), and each expert as often.
TEST(EvenRouting, HitsWhatRandomChoicesHit) {
  for (const auto& [experts, top_k] : {std::pair{128, 8}, {512, 10}, {60, 4}, {8, 8}, {5, 2}}) {
    std::vector<int> hits(experts);
    double distinct = 0;
    constexpr int kLayers = 400, kTokens = 64;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::set<int32_t> hit;
      for (uint32_t token = 0; token < kTokens; ++token) {
        const EvenChoice choice = ChooseEvenly(token * 977, layer, experts, top_k);
        std::set<int32_t> own;
        for (int32_t i = 0; i < top_k; ++i) {
          const int32_t expert = choice.expert(i, experts);
          ASSERT_TRUE(expert >= 0 && expert < experts);
          own.insert(expert);
          ++hits[expert];
        }
        ASSERT_EQ(own.size(), static_cast<size_t>(top_k)) << "different experts";
        hit.insert(own.begin(), own.end());
      }
      distinct += static_cast<double>(hit.size()) / kLayers;
    }
    const double e = experts, k = top_k;
    EXPECT_NEAR(distinct, LikelyHits(e, k, kTokens), 0.02 * e);
    const double mean = double{kLayers} * kTokens * k / e;
    for (const int count : hits) EXPECT_NEAR(count, mean, 6 * std::sqrt(mean));
  }
}

}  // namespace
}  // namespace nibble::kernels
