#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/ptx/block_scaled_emulator.h"
#include "kernels/cuda/ptx/block_scaled_probe.h"
#include "numerics/e4m3.h"
#include "testing/golden.h"

namespace nibble::kernels::cuda::ptx {
namespace {

// tests/golden/kernels/block_scaled_mma.txt: CuTe's layouts.
TEST(BlockScaled, FragmentsLieWhereCuteHasThem) {
  std::ifstream file(GoldenPath("kernels/block_scaled_mma.txt"));
  ASSERT_TRUE(file);
  int checked = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string operand;
    int lane, v, row, column;
    ASSERT_TRUE(words >> operand >> lane >> v >> row >> column) << line;
    if (operand == "A") {
      const FragmentPlace at = BlockScaledA(lane, v);
      EXPECT_TRUE(at.row == row && at.column == column) << line;
    } else if (operand == "B") {
      const FragmentPlace at = BlockScaledB(lane, v);
      EXPECT_TRUE(at.column == row && at.row == column) << line;
    } else if (operand == "C") {
      const FragmentPlace at = BlockScaledC(lane, v);
      EXPECT_TRUE(at.row == row && at.column == column) << line;
    } else if (operand == "SFA") {
      // CuTe fills both pairs of a quad alike; byte v is group v.
      const bool held = ScaleLaneA(row, 0) == lane || ScaleLaneA(row, 1) == lane;
      EXPECT_TRUE(held && column == v) << line;
    } else if (operand == "SFB") {
      EXPECT_TRUE(ScaleLaneB(row, lane % 4) == lane && column == v) << line;
    }
    ++checked;
  }
  EXPECT_EQ(checked, 32 * (32 + 16 + 4 + 4 + 4));
}

struct Problem {
  uint8_t a[16][64], b[64][8], scales_a[16][4], scales_b[8][4];
  float c[16][8];
};

Problem Draw(std::mt19937& random, int low_scale, int high_scale) {
  Problem p;
  std::uniform_int_distribution<int> code(0, 15), scale(low_scale, high_scale);
  std::normal_distribution<float> normal;
  for (auto& row : p.a)
    for (uint8_t& x : row) x = static_cast<uint8_t>(code(random));
  for (auto& row : p.b)
    for (uint8_t& x : row) x = static_cast<uint8_t>(code(random));
  for (auto& row : p.scales_a)
    for (uint8_t& x : row) x = static_cast<uint8_t>(scale(random));
  for (auto& row : p.scales_b)
    for (uint8_t& x : row) x = static_cast<uint8_t>(scale(random));
  for (auto& row : p.c)
    for (float& x : row) x = std::ldexp(normal(random), static_cast<int>(random() % 24) - 8);
  return p;
}

// Where no selector reads, registers hold what would be noticed.
WarpRegisters RegistersOf(const Problem& p, int selector_a, int selector_b) {
  WarpRegisters warp;
  warp.scales_a.fill(0x7F7F7F7Fu);
  warp.scales_b.fill(0x7F7F7F7Fu);
  const auto word = [](const uint8_t(&scales)[4]) {
    return scales[0] | scales[1] << 8 | scales[2] << 16 | static_cast<uint32_t>(scales[3]) << 24;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < 32; ++v) {
      const FragmentPlace at = BlockScaledA(lane, v);
      warp.a[lane][v / 8] |= uint32_t{p.a[at.row][at.column]} << (4 * (v % 8));
    }
    for (int v = 0; v < 16; ++v) {
      const FragmentPlace at = BlockScaledB(lane, v);
      warp.b[lane][v / 8] |= uint32_t{p.b[at.row][at.column]} << (4 * (v % 8));
    }
    for (int v = 0; v < 4; ++v) {
      const FragmentPlace at = BlockScaledC(lane, v);
      warp.c[lane][v] = p.c[at.row][at.column];
    }
  }
  for (int row = 0; row < 16; ++row)
    warp.scales_a[ScaleLaneA(row, selector_a)] = word(p.scales_a[row]);
  for (int column = 0; column < 8; ++column)
    warp.scales_b[ScaleLaneB(column, selector_b)] = word(p.scales_b[column]);
  return warp;
}

TEST(BlockScaled, EmulatorMultipliesMatrices) {
  std::mt19937 random(5);
  for (int turn = 0; turn < 64; ++turn) {
    const int selector_a = turn % 2, selector_b = turn / 2 % 4;
    const Problem p = Draw(random, turn % 3 == 0 ? 0 : 0x20, turn % 5 == 0 ? 0x7E : 0x48);
    WarpRegisters warp = RegistersOf(p, selector_a, selector_b);
    EmulateBlockScaledMma(warp, selector_a, selector_b);
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 4; ++v) {
        const FragmentPlace at = BlockScaledC(lane, v);
        double sum = p.c[at.row][at.column];
        double largest = std::fabs(sum);
        for (int k = 0; k < 64; ++k) {
          const double product =
              static_cast<double>(E2M1ToFloat(p.a[at.row][k])) * E2M1ToFloat(p.b[k][at.column]) *
              E4M3ToFloat(p.scales_a[at.row][k / 16]) * E4M3ToFloat(p.scales_b[at.column][k / 16]);
          sum += product;
          largest = std::max(largest, std::fabs(product));
        }
        EXPECT_NEAR(warp.c[lane][v], sum, 0x1p-23 * std::fabs(sum) + 0x1p-32 * largest);
      }
  }
}

constexpr uint32_t kOnes = 0x38383838u;

// The published model: alignment, 35 bits, truncation.
TEST(BlockScaled, SumsTruncate) {
  const auto sum = [](float c, int dot, uint32_t scales = kOnes) {
    return BlockScaledSum(c, {dot, 0, 0, 0}, scales, kOnes);
  };
  EXPECT_EQ(sum(0.0f, 4), 1.0f);
  EXPECT_EQ(sum(1.0f, -4), 0.0f);
  EXPECT_EQ(sum(-3.5f, 2), -3.0f);
  // What a rounding to nearest would keep, or round up.
  EXPECT_EQ(sum(0x1p24f, 4), 0x1p24f);
  EXPECT_EQ(sum(0x1.fffffep23f, 3), 0x1.fffffep23f);
  EXPECT_EQ(sum(0x1p24f, -1), 0x1.fffffep23f);
  // Below the 35 bits nothing is left, though the sum would be a smaller number.
  EXPECT_EQ(sum(0x1p32f, -1), 0x1.fffffep31f);
  EXPECT_EQ(sum(0x1p33f, -4), 0x1.fffffep32f);
  EXPECT_EQ(sum(0x1p34f, -1), 0x1p34f);
  EXPECT_EQ(sum(0x1p36f, -4), 0x1p36f);
  // Subnormal scales, subnormal results.
  EXPECT_EQ(sum(0.0f, 4, 0x01u), 0x1p-9f);
  EXPECT_EQ(sum(0.0f, 4, 0x07u), 7 * 0x1p-9f);
  EXPECT_EQ(sum(0x1p-149f, 0), 0x1p-149f);
  EXPECT_EQ(sum(-0x1.8p-127f, 0), -0x1.8p-127f);
  // The sign of a scale is ignored; NaN is kept.
  EXPECT_EQ(sum(0.0f, 4, 0xB8u), 1.0f);
  EXPECT_TRUE(std::isnan(sum(0.0f, 4, 0x7Fu)));
  EXPECT_TRUE(std::isnan(sum(std::numeric_limits<float>::quiet_NaN(), 4)));
  EXPECT_EQ(sum(std::numeric_limits<float>::infinity(), -4),
            std::numeric_limits<float>::infinity());
}

TEST(BlockScaled, DotsAreExact) {
  for (int a = 0; a < 16; ++a)
    for (int b = 0; b < 16; ++b) {
      const float product =
          E2M1ToFloat(static_cast<uint8_t>(a)) * E2M1ToFloat(static_cast<uint8_t>(b));
      EXPECT_EQ(static_cast<float>(DotE2M1(a * 0x11111111u, b * 0x11111111u)), 32 * product);
    }
}

// On SM 12.x the instruction itself against its published model; elsewhere our emulation of it.
TEST(BlockScaled, GpuHasTheBitsOfTheEmulator) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
  std::mt19937 random(6);
  for (int selectors = 0; selectors < 8; ++selectors) {
    const int selector_a = selectors / 4, selector_b = selectors % 4;
    std::vector<WarpRegisters> warps;
    for (int i = 0; i < 64; ++i)
      warps.push_back(
          RegistersOf(Draw(random, i % 3 == 0 ? 0 : 0x20, 0x7E), selector_a, selector_b));
    std::vector<WarpRegisters> expected = warps;
    for (WarpRegisters& warp : expected) EmulateBlockScaledMma(warp, selector_a, selector_b);
    ProbeBlockScaledMma(warps, selector_a, selector_b);
    for (size_t i = 0; i < warps.size(); ++i)
      for (int lane = 0; lane < 32; ++lane)
        for (int v = 0; v < 4; ++v)
          ASSERT_EQ(std::bit_cast<uint32_t>(warps[i].c[lane][v]),
                    std::bit_cast<uint32_t>(expected[i].c[lane][v]))
              << "warp " << i << ", lane " << lane << ", element " << v;
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda::ptx
