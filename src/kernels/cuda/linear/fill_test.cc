// Made-up weights on the GPU: the bytes of the host, and weights packed from them that are the same
// as those packed from bytes.
#include "kernels/cuda/linear/fill.h"

#include <gtest/gtest.h>

#include <vector>

#include "device/buffer.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

using Kind = MadeUpBytes::Kind;

std::vector<std::byte> OnTheHost(const MadeUpRows& rows, int64_t count, int64_t row_bytes) {
  std::vector<std::byte> bytes;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t i = 0; i < row_bytes; ++i) {
      const int64_t at = rows.first + row * rows.stride + i;
      bytes.push_back(static_cast<std::byte>(MadeUpWord(rows.bytes, at / 8) >> (at % 8 * 8)));
    }
  return bytes;
}

class CudaFill : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "no GPU";
  }
  Device& device() const { return *cuda::SyncedOps()->device; }
};

TEST_F(CudaFill, HasTheBytesOfTheHost) {
  const MadeUpBytes kinds[] = {
      {.kind = Kind::kBits, .stream = 11},
      {.kind = Kind::kE4m3Codes, .stream = 12},
      {.kind = Kind::kE4m3Scales, .stream = 10},
      {.kind = Kind::kBytes, .base = 0x38, .mask = 0x0F, .stream = 13},
      {.kind = Kind::kNibbles, .base = 7, .mask = 1, .stream = 14},
      {.kind = Kind::kFloats, .dtype = DType::kBF16, .spread = 0.03f, .stream = 15},
      {.kind = Kind::kFloats,
       .dtype = DType::kF16,
       .centre = 0.01f,
       .spread = 0.005f,
       .stream = 16},
      {.kind = Kind::kFloats, .dtype = DType::kF32, .centre = 1.5f, .spread = 0.7f, .stream = 17},
      {.kind = Kind::kQuotient, .first = 3},
  };
  for (const MadeUpBytes& bytes : kinds) {
    for (const auto& [first, stride, row_bytes] :
         {std::tuple<int64_t, int64_t, int64_t>{0, 1024, 1024},
          {4096, 2048, 1024},
          {3, 77, 18},
          {1 << 20, 8, 8}}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(bytes.kind) << " from " << first);
      const MadeUpRows rows = {.bytes = bytes, .first = first, .stride = stride};
      constexpr int64_t kRows = 37;
      const auto size = static_cast<size_t>(kRows * row_bytes);
      Buffer buffer = std::move(*Buffer::Allocate(size, device()));
      const cuda::RowsToFill piece = {rows, kRows, row_bytes, buffer.data()};
      cuda::FillRows({&piece, 1}, device().stream());
      std::vector<std::byte> made(size);
      device().Download(made.data(), buffer.data(), size);
      EXPECT_EQ(made, OnTheHost(rows, kRows, row_bytes));
    }
  }
}

std::vector<std::byte> PackedBytes(const PackedWeight& weight, Device& device) {
  std::vector<std::byte> bytes(static_cast<size_t>(weight.bytes()));
  device.Download(bytes.data(), cuda::AsCuda(weight).tiles().data, bytes.size());
  return bytes;
}

TEST_F(CudaFill, PacksAsFromBytes) {
  constexpr int64_t kN = 300, kK = 576;
  const MadeUpBytes codes = {.kind = Kind::kBits, .stream = 21};
  const MadeUpBytes e4m3 = {.kind = Kind::kE4m3Codes, .stream = 22};
  const MadeUpBytes scales = {.kind = Kind::kE4m3Scales, .stream = 23};
  const MadeUpBytes floats = {
      .kind = Kind::kFloats, .dtype = DType::kF32, .centre = 0.1f, .spread = 0.05f, .stream = 24};
  const MadeUpBytes wide = {
      .kind = Kind::kFloats, .dtype = DType::kBF16, .spread = 0.03f, .stream = 25};
  struct Case {
    QuantView view;
    MadeUpBytes data, scales;
  };
  const Case cases[] = {
      {{.format = WeightFormat::kNvfp4, .n = kN, .k = kK, .global_scale = 0.01f}, codes, scales},
      {{.format = WeightFormat::kMxfp4, .n = kN, .k = kK},
       codes,
       {.kind = Kind::kBytes, .base = 96, .mask = 31, .stream = 26}},
      {{.format = WeightFormat::kFp8,
        .n = kN,
        .k = kK,
        .scale_dtype = DType::kF32,
        .scale_block_n = 128,
        .scale_block_k = 128},
       e4m3,
       floats},
      {{.format = WeightFormat::kBf16, .n = kN, .k = kK}, wide, {}},
  };
  const auto lane = std::move(*device().MakeLane(16 << 10));  // several slots per weight
  for (const Case& c : cases) {
    SCOPED_TRACE(WeightFormatName(c.view.format));
    const int64_t row_bytes = c.view.data_bytes() / kN;
    const int64_t scale_rows = (kN + c.view.scale_block_n - 1) / c.view.scale_block_n;
    const int64_t scale_bytes = c.view.scale_bytes() / scale_rows;
    // Every other row of a tensor of codes, where scales allow it.
    const int64_t step = c.view.scale_block_n == 1 ? 2 : 1;
    const MadeUpWeight made_up = {.data = {c.data, 3 * row_bytes, step * row_bytes},
                                  .scales = {c.scales, 3 * scale_bytes, step * scale_bytes}};
    const std::vector<std::byte> data = OnTheHost(made_up.data, kN, row_bytes);
    const std::vector<std::byte> scale = OnTheHost(made_up.scales, scale_rows, scale_bytes);
    QuantView stored = c.view, described = c.view;
    stored.data = data.data();
    stored.scales = scale.data();
    described.made_up = &made_up;
    const auto pack = [&](const std::vector<QuantView>& parts) {
      auto weight = cuda::CudaWeight::Pack({.parts = parts, .lane = lane.get()}, device());
      EXPECT_TRUE(weight) << weight.error().message();
      EXPECT_TRUE(lane->Finish());
      return PackedBytes(**weight, device());
    };
    const std::vector<std::byte> expected = pack({stored, stored, stored});
    EXPECT_EQ(pack({described, described, described}), expected);
    EXPECT_EQ(pack({stored, described, stored}), expected);
  }
}

}  // namespace
}  // namespace nibble::kernels
