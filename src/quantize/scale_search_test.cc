// ScaleSearch against the plain search of numerics/nvfp4.h, whose results it must equal bit for
// bit.
#include "quantize/scale_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace nibble::quantize {
namespace {

using Block = std::vector<float>;

void ExpectEqualToPlain(const ScaleSearch& search, float tensor_scale, const Block& block) {
  uint8_t codes[8], plain_codes[8];
  const uint8_t plain = Nvfp4QuantizeBlockMse(block.data(), tensor_scale, plain_codes);
  std::string values;
  for (const float value : block) values += std::to_string(value) + " ";
  ASSERT_EQ(search.BestScale(block.data()), plain) << tensor_scale << ": " << values;
  ASSERT_EQ(search.Quantize(block.data(), codes), plain);
  ASSERT_TRUE(std::ranges::equal(codes, plain_codes)) << tensor_scale << ": " << values;
}

class ScaleSearchTest : public testing::TestWithParam<float> {};

TEST_P(ScaleSearchTest, RandomBlocks) {
  const float tensor_scale = GetParam();
  const ScaleSearch search(tensor_scale);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(1.5f);
  std::uniform_real_distribution<float> octaves(-14, 14);
  for (int round = 0; round < 600; ++round) {
    Block block(kNvfp4Block);
    const float size = tensor_scale * std::exp2(octaves(random));
    for (float& value : block) value = size * (round % 2 == 0 ? normal(random) : heavy(random));
    ExpectEqualToPlain(search, tensor_scale, block);
  }
}

TEST_P(ScaleSearchTest, BlocksWithTiesAndZeros) {
  const float tensor_scale = GetParam();
  const ScaleSearch search(tensor_scale);
  std::mt19937 random(11);
  const float grid[] = {0.0f, -0.0f, 0.25f, 0.5f, 0.75f, 1.25f, 1.5f, 1.75f,
                        2.5f, -3.0f, 3.5f,  4.0f, 5.0f,  6.0f,  -6.0f};
  for (int round = 0; round < 400; ++round) {
    // Values and borders of the code under some scale, a few of them one ulp off.
    const float step = E4M3ToFloat(static_cast<uint8_t>(1 + random() % 126)) * tensor_scale;
    Block block(kNvfp4Block);
    for (float& value : block) {
      value = grid[random() % std::size(grid)] * step;
      if (random() % 4 == 0) value = std::nextafter(value, random() % 2 == 0 ? -9e9f : 9e9f);
    }
    ExpectEqualToPlain(search, tensor_scale, block);
  }
}

TEST_P(ScaleSearchTest, BlocksAtTheEdge) {
  const float tensor_scale = GetParam();
  const ScaleSearch search(tensor_scale);
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float huge = std::numeric_limits<float>::max();
  std::vector<Block> blocks = {Block(kNvfp4Block, 0.0f), Block(kNvfp4Block, -0.0f)};
  for (const float value : {tiny, 1e-40f, 1e-30f, 1e-20f, 1e-10f, 1e-5f, 0.1f, 1.0f, 7.0f, 1e5f,
                            1e10f, 1e19f, 1e20f, 1e30f, huge, 448 * 6 * tensor_scale, tensor_scale,
                            tensor_scale / 512, tensor_scale / 4096}) {
    blocks.push_back(Block(kNvfp4Block, value));
    blocks.push_back(Block(kNvfp4Block, -value));
    Block one(kNvfp4Block, 0.0f);
    one[5] = -value;
    blocks.push_back(one);
    for (int i = 0; i < kNvfp4Block; ++i) one[i] = value * static_cast<float>(i) / 16;
    blocks.push_back(one);
  }
  for (const Block& block : blocks) ExpectEqualToPlain(search, tensor_scale, block);
}

INSTANTIATE_TEST_SUITE_P(TensorScales, ScaleSearchTest,
                         testing::Values(1.0f, 0.000116257f, 0x1.fffffep-9f, 3.3f, 1e-20f, 1e20f,
                                         1e30f, 3e37f, 1e-36f, 1e-42f));

}  // namespace
}  // namespace nibble::quantize
