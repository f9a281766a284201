// Frequencies against values worked out by hand from the published definitions (double precision).
#include "models/layers/rope.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace nibble::models
