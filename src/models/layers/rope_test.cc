// Frequencies against values worked out by hand from the published definitions (double precision).
#include "models/layers/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::models {
namespace {

RopeConfig Read(const char* text, int64_t dim, int64_t positions) {
  const boost::json::value value = boost::json::parse(text);
  ConfigReader reader(value.get_object(), "config.json");
  RopeConfig config = ReadRopeConfig(reader, dim, positions, 10000.0);
  EXPECT_TRUE(reader.status()) << (reader.status() ? "" : reader.status().error().message());
  return config;
}

TEST(Rope, DefaultUsesTheta) {
  const auto f = RopeInverseFrequencies(Read(R"({"rope_theta": 1e7})", 64, 4096));
  ASSERT_EQ(f.size(), 32u);
  EXPECT_NEAR(f[1], 0.60429639, 1e-8);
  EXPECT_NEAR(f[8], 0.0177827941, 1e-10);
  EXPECT_NEAR(f[31], 1.6548171e-7, 1e-14);
}

TEST(Rope, Llama3KeepsHighAndDividesLowFrequencies) {
  const auto f = RopeInverseFrequencies(Read(
      R"({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
          "high_freq_factor": 4, "original_max_position_embeddings": 8192}})",
      128, 131072));
  const auto plain = RopeInverseFrequencies(Read(R"({"rope_theta": 5e5})", 128, 131072));
  EXPECT_DOUBLE_EQ(f[28], plain[28]);
  EXPECT_DOUBLE_EQ(f[35], plain[35] / 8);
  EXPECT_NEAR(f[29], 2.16657076e-3, 1e-11);
  EXPECT_NEAR(f[32], 5.24846161e-4, 1e-12);
  EXPECT_NEAR(f[34], 1.78507813e-4, 1e-12);
  EXPECT_NEAR(f[63], 3.06892599e-7, 1e-15);
}

TEST(Rope, YarnFromNewStyleParameters) {
  const RopeConfig config = Read(
      R"({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4,
          "original_max_position_embeddings": 32768}})",
      128, 131072);
  EXPECT_NEAR(RopeAttentionFactor(config), 1.13862944, 1e-8);
  const auto f = RopeInverseFrequencies(config);
  const auto plain = RopeInverseFrequencies(Read(R"({"rope_theta": 1e6})", 128, 131072));
  EXPECT_DOUBLE_EQ(f[23], plain[23]);      // up to here unchanged
  EXPECT_DOUBLE_EQ(f[40], plain[40] / 4);  // from here interpolated
  EXPECT_LT(f[30], plain[30]);
}

TEST(Rope, YarnWithMscales) {
  const RopeConfig config = Read(
      R"({"rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
          "original_max_position_embeddings": 4096}})",
      64, 163840);
  EXPECT_DOUBLE_EQ(RopeAttentionFactor(config), 1.0);
  EXPECT_NEAR(RopeScoreFactor(config) * RopeScoreFactor(config), 1.87385, 1e-5);
  const auto f = RopeInverseFrequencies(config);
  EXPECT_NEAR(f[16], 5.5e-3, 1e-12);
  EXPECT_NEAR(f[31], 3.33380358e-6, 1e-13);
}

TEST(Rope, UnknownTypeIsNamed) {
  const boost::json::value value =
      boost::json::parse(R"({"rope_scaling": {"rope_type": "spiral"}})");
  ConfigReader reader(value.get_object(), "config.json");
  ReadRopeConfig(reader, 64, 4096, 10000.0);
  ASSERT_FALSE(reader.status());
  EXPECT_NE(reader.status().error().message().find("spiral"), std::string::npos);
}

constexpr const char* kLongRope =
    R"({"original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope",
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.3, 1.6], "long_factor": [1.1, 1.4, 2.1, 3.3, 6.0, 8.0]}})";

// Against transformers' own function.
TEST(Rope, LongRopeHasTwoSetsOfFrequencies) {
  const RopeConfig config = Read(kLongRope, 12, 512);
  const auto shorter = RopeInverseFrequencies(config, RopeSet::kShort);
  const auto longer = RopeInverseFrequencies(config, RopeSet::kLong);
  EXPECT_NEAR(shorter[1], 0.211219087, 1e-7);
  EXPECT_NEAR(shorter[5], 0.000290099357, 1e-9);
  EXPECT_NEAR(longer[0], 0.909090877, 1e-7);
  EXPECT_NEAR(longer[5], 5.80198684e-05, 1e-9);
  EXPECT_NEAR(RopeAttentionFactor(config), 1.224744871391589, 1e-9);
}

TEST(Rope, LongRopeTableHoldsShortRowsThenLongOnes) {
  const RopeConfig config = Read(kLongRope, 12, 512);
  const RopeTable table = MakeRopeTable(config, 512);
  EXPECT_EQ(table.long_rows, 64);
  ASSERT_EQ(table.cos.size(), (64 + 512) * 6u);
  // At the same position the slow frequencies' angles differ by their factors.
  const auto angle = [&](int64_t row) {
    return std::atan2(table.sin[row * 6 + 5], table.cos[row * 6 + 5]);
  };
  EXPECT_NEAR(angle(50) * 1.6, angle(64 + 50) * 8.0, 1e-5);
  // A model that stays within the original context needs no long rows.
  EXPECT_EQ(MakeRopeTable(config, 64).long_rows, 0);
}

TEST(Rope, LongRopeFactorsMustBeOnePerPair) {
  const auto value = boost::json::parse(kLongRope);
  ConfigReader reader(value.get_object(), "config.json");
  ReadRopeConfig(reader, 16, 512, 10000.0);
  ASSERT_FALSE(reader.status());
  EXPECT_NE(reader.status().error().message().find("expected 8"), std::string::npos);
}

TEST(Rope, PartialRotaryFactorIsReadInBothPlaces) {
  for (const char* text : {R"({"partial_rotary_factor": 0.75})",
                           R"({"rope_parameters": {"partial_rotary_factor": 0.75}})"}) {
    const auto value = boost::json::parse(text);
    ConfigReader reader(value.get_object(), "config.json");
    EXPECT_EQ(ReadRotaryDim(reader, 128), 96);
  }
}

}  // namespace
}  // namespace nibble::models
