// NVFP4 and MXFP4 blocks: worked examples computed by hand, and the rules at the edges (zeros,
// signs, saturation).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

using Bytes = std::vector<uint8_t>;

// 16 BF16 weights of a tensor whose largest magnitude is 0.3125.
std::vector<float> WorkedBlock() {
  std::vector<float> values;
  for (const int bits : {0x3C24, 0xBCA4, 0x3CF6, 0xBD24, 0x3D4D, 0xBD76, 0x3D8F, 0xBDA4, 0x3DB8,
                         0xBDCD, 0x3DE1, 0xBE00, 0x3B03, 0xBB45, 0x0000, 0x3D76})
    values.push_back(Bf16ToFloat(static_cast<uint16_t>(bits)));
  return values;
}

TEST(Nvfp4, WorkedBlockByMax) {
  const std::vector<float> block = WorkedBlock();
  const float tensor_scale = Nvfp4TensorScale(0.3125f);
  EXPECT_EQ(std::bit_cast<uint32_t>(tensor_scale), 0x38F3CF3Du);
  Bytes codes(8);
  EXPECT_EQ(Nvfp4QuantizeBlockMax(block.data(), tensor_scale, codes.data()), 0x73);
  EXPECT_EQ(codes, (Bytes{0xA1, 0xC3, 0xD4, 0xE5, 0xE6, 0xF7, 0x80, 0x50}));
  EXPECT_NEAR(Nvfp4BlockError(block.data(), 0x73, tensor_scale), 7.443e-4, 5e-8);
  const double expected[] = {.01023, -.02046, .03069, -.04092, .04092, -.06138, .06138, -.08185,
                             .08185, -.08185, .12277, -.12277, 0,      0,       0,      .06138};
  for (int i = 0; i < kNvfp4Block; ++i)
    EXPECT_NEAR(Nvfp4Dequantize(UnpackE2M1(codes.data(), i), 0x73, tensor_scale), expected[i],
                6e-6);
}

TEST(Nvfp4, WorkedBlockByLeastError) {
  const std::vector<float> block = WorkedBlock();
  const float tensor_scale = Nvfp4TensorScale(0.3125f);
  Bytes codes(8);
  EXPECT_EQ(Nvfp4QuantizeBlockMse(block.data(), tensor_scale, codes.data()), 0x78);
  EXPECT_NEAR(Nvfp4BlockError(block.data(), 0x78, tensor_scale), 5.421e-4, 5e-8);
}

// "Four over six" normalises by 256 and maps the block's maximum to 6 or 4: other scales, same
// code.
TEST(Nvfp4, WorkedBlockUnderOtherScales) {
  const std::vector<float> block = WorkedBlock();
  const float tensor_scale = 0.3125f / (6 * 256);
  EXPECT_EQ(Nvfp4BlockScale(0.125f, tensor_scale), 0x6D);
  EXPECT_NEAR(Nvfp4BlockError(block.data(), 0x6D, tensor_scale), 7.290e-4, 5e-8);
  EXPECT_NEAR(Nvfp4BlockError(block.data(), 0x72, tensor_scale), 6.708e-4, 5e-8);
  Bytes codes(8);
  for (int i = 0; i < kNvfp4Block; i += 2)
    codes[i / 2] = PackE2M1(Nvfp4Code(block[i], 0x72, tensor_scale),
                            Nvfp4Code(block[i + 1], 0x72, tensor_scale));
  EXPECT_EQ(codes, (Bytes{0x91, 0xA2, 0xC3, 0xC4, 0xD5, 0xE5, 0x80, 0x40}));
}

TEST(Nvfp4, ZeroBlockHasScaleOneAndNoSigns) {
  std::vector<float> zeros(kNvfp4Block, 0.0f);
  zeros[3] = -0.0f;
  for (const float tensor_scale : {1.0f, 1e-4f}) {
    Bytes codes(8, 0xFF);
    EXPECT_EQ(Nvfp4QuantizeBlockMax(zeros.data(), tensor_scale, codes.data()), 0x38);
    EXPECT_EQ(codes, Bytes(8, 0));
    codes.assign(8, 0xFF);
    EXPECT_EQ(Nvfp4QuantizeBlockMse(zeros.data(), tensor_scale, codes.data()), 0x38);
    EXPECT_EQ(codes, Bytes(8, 0));
  }
  EXPECT_EQ(Nvfp4TensorScale(0.0f), 1.0f);
}

TEST(Nvfp4, OnlyValuesBelowZeroGetTheSign) {
  EXPECT_EQ(Nvfp4Code(-0.0f, 0x38, 1.0f), 0);
  EXPECT_EQ(Nvfp4Code(0.0f, 0x38, 1.0f), 0);
  EXPECT_EQ(Nvfp4Code(-0.1f, 0x38, 1.0f), 8);
  EXPECT_EQ(Nvfp4Code(-std::numeric_limits<float>::denorm_min(), 0x38, 1.0f), 8);
}

TEST(Nvfp4, BlockScaleStaysInRange) {
  EXPECT_EQ(Nvfp4BlockScale(1e-9f, 1.0f), 0x01);  // clamped to 2^-9
  EXPECT_EQ(Nvfp4BlockScale(1e9f, 1.0f), 0x7E);   // clamped to 448
  // The largest block of a tensor: 448, however the tensor scale was rounded.
  for (uint16_t bits = 0x3F80; bits < 0x4000; ++bits) {
    const float amax = Bf16ToFloat(bits);
    EXPECT_EQ(Nvfp4BlockScale(amax, Nvfp4TensorScale(amax)), 0x7E) << amax;
  }
}

TEST(Nvfp4, NanSaturatesToTheLargestCode) {
  EXPECT_EQ(Nvfp4Code(std::numeric_limits<float>::quiet_NaN(), 0x38, 1.0f), 7);
  EXPECT_TRUE(std::isnan(Nvfp4Dequantize(1, 0x7F, 1.0f)));
}

TEST(Mxfp4, WorkedBlock) {
  std::vector<float> block(kMxfp4Block, 0.0f);
  block[0] = 0.7f;
  block[1] = -0.7f;
  block[2] = 0.35f;
  block[3] = 0.1f;
  Bytes codes(16);
  EXPECT_EQ(Mxfp4QuantizeBlock(block.data(), codes.data()), 0x7C);
  EXPECT_EQ(codes[0], 0xF7);
  EXPECT_EQ(codes[1], 0x25);
  EXPECT_EQ(Mxfp4Dequantize(0xF, 0x7C), -0.75f);
}

TEST(Mxfp4, ScaleIsTheFloorOfTheExponentMinusTwo) {
  EXPECT_EQ(Mxfp4BlockScale(4.0f), 127);
  EXPECT_EQ(Mxfp4BlockScale(7.99f), 127);  // saturates: 7.99 -> 6
  EXPECT_EQ(Mxfp4BlockScale(8.0f), 128);
  EXPECT_EQ(Mxfp4BlockScale(0.0f), 0);
  EXPECT_EQ(Mxfp4BlockScale(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(Mxfp4BlockScale(std::numeric_limits<float>::max()), 252);
  EXPECT_EQ(E8M0ToFloat(0), 0x1p-127f);
}

TEST(Mxfp4, ZeroBlockIsZero) {
  const std::vector<float> zeros(kMxfp4Block, 0.0f);
  Bytes codes(16, 0xFF);
  EXPECT_EQ(Mxfp4QuantizeBlock(zeros.data(), codes.data()), 0);
  EXPECT_EQ(codes, Bytes(16, 0));
}

}  // namespace
}  // namespace nibble
