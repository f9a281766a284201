// AMX's kernels without AMX: the loops of amx_loops.inc over an emulation of the tile registers, as
// Intel's instruction set reference describes them, have the bits of AVX-512's kernels.
#include <gtest/gtest.h>

#include <cstring>

#include "device/cpu.h"
#include "kernels/linear_fixture.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear.h"
#include "kernels/cpu/linear/linear_kernels.h"

#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx512vbmi2,avx2,fma,f16c,bmi2")

namespace nibble::kernels::cpu {
namespace amx_emulated {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/pairs_avx512.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/batch_kinds_avx512.inc"
//
#include "kernels/cpu/linear/amx_loops.inc"

constexpr int kTiles = 8;
constexpr int kMostRows = 16;
constexpr int kMostBytes = 64;

// What LDTILECFG, TILELOADD, TILESTORED, TILEZERO and TDPBSUD do; what they would fault at fails.
struct EmulatedTiles {
  static inline thread_local TileConfig config;
  static inline thread_local bool configured = false;
  static inline thread_local uint8_t tiles[kTiles][kMostRows][kMostBytes];

  static void Configure(const TileConfig& wanted) {
    ASSERT_EQ(wanted.palette, 1);
    for (int tile = 0; tile < kTiles; ++tile) {
      ASSERT_TRUE(wanted.rows[tile] >= 1 && wanted.rows[tile] <= kMostRows);
      ASSERT_TRUE(wanted.row_bytes[tile] >= 4 && wanted.row_bytes[tile] <= kMostBytes);
    }
    config = wanted;
    configured = true;
    std::memset(tiles, 0, sizeof(tiles));
  }
  static void Release() { configured = false; }

  template <int kTile>
  static void Zero() {
    ASSERT_TRUE(configured);
    std::memset(tiles[kTile], 0, sizeof(tiles[kTile]));
  }
  template <int kTile>
  static void Load(const void* p, int64_t stride) {
    Zero<kTile>();
    for (int row = 0; row < config.rows[kTile]; ++row) {
      std::memcpy(tiles[kTile][row], static_cast<const uint8_t*>(p) + row * stride,
                  config.row_bytes[kTile]);
    }
  }
  template <int kTile>
  static void Store(void* p, int64_t stride) {
    ASSERT_TRUE(configured);
    for (int row = 0; row < config.rows[kTile]; ++row) {
      std::memcpy(static_cast<uint8_t*>(p) + row * stride, tiles[kTile][row],
                  config.row_bytes[kTile]);
    }
  }
  template <int kSums, int kA, int kB>
  static void MultiplyAdd() {
    ASSERT_TRUE(configured);
    ASSERT_EQ(config.rows[kSums], config.rows[kA]);
    ASSERT_EQ(config.row_bytes[kSums], config.row_bytes[kB]);
    ASSERT_EQ(config.row_bytes[kA], 4 * config.rows[kB]);
    for (int m = 0; m < config.rows[kSums]; ++m) {
      for (int n = 0; n < config.row_bytes[kSums] / 4; ++n) {
        int32_t sum = 0;
        std::memcpy(&sum, &tiles[kSums][m][4 * n], sizeof(sum));
        for (int k = 0; k < config.row_bytes[kA]; ++k) {
          sum += static_cast<int8_t>(tiles[kA][m][k]) * tiles[kB][k / 4][4 * n + k % 4];
        }
        std::memcpy(&tiles[kSums][m][4 * n], &sum, sizeof(sum));
      }
    }
  }
};

}  // namespace
}  // namespace amx_emulated
}  // namespace nibble::kernels::cpu

#pragma GCC pop_options

namespace nibble::kernels {
namespace {

const cpu::LinearKernels& EmulatedAmxLinear() {
  static const cpu::LinearKernels kernels =
      cpu::WithTiles(cpu::amx_emulated::TileRuns<cpu::amx_emulated::EmulatedTiles>());
  return kernels;
}

// AVX-512's ops with linears of emulated tiles.
const OpTable& EmulatedOps() {
  static const OpTable ops = [] {
    OpTable table = **CpuOpsVariant("avx512");
    table.pack_weight = [](const PackParams& params) {
      return cpu::PackWeight(params, EmulatedAmxLinear());
    };
    return table;
  }();
  return ops;
}

struct Case {
  WeightFormat format;
  ActivationFormat activations;
};

class AmxLinear : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!GetCpuInfo().features.avx512) GTEST_SKIP() << "this processor has no AVX-512";
  }
};

TEST_P(AmxLinear, HasTheBitsOfAvx512) {
  Runner emulated(EmulatedOps(), 2);
  Runner avx512(**CpuOpsVariant("avx512"), 2);
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 64}, {40, 576}, {100, 1216}}) {
    const Stored weight = MakeWeight(GetParam().format, n, k, 7);
    const auto ours = emulated.Pack({&weight.view, 1}, GetParam().activations);
    const auto other = avx512.Pack({&weight.view, 1}, GetParam().activations);
    for (const int64_t m : {1, 3, 7, 8, 12, 16, 17, 33, 47, 193}) {
      const std::vector<uint16_t> x = MakeActivations(m * k, 11);
      ASSERT_EQ(emulated.LinearBf16(*ours, x), avx512.LinearBf16(*other, x))
          << m << " tokens, " << n << " x " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, AmxLinear,
                         testing::Values(Case{WeightFormat::kNvfp4, ActivationFormat::kInt8},
                                         Case{WeightFormat::kNvfp4, ActivationFormat::kInt16},
                                         Case{WeightFormat::kNvfp4, ActivationFormat::kRequantized},
                                         Case{WeightFormat::kMxfp4, ActivationFormat::kInt8},
                                         Case{WeightFormat::kMxfp4, ActivationFormat::kInt16},
                                         Case{WeightFormat::kMxfp4,
                                              ActivationFormat::kRequantized}),
                         [](const auto& info) {
                           return std::string(WeightFormatName(info.param.format)) + "_" +
                                  std::string(ActivationFormatName(info.param.activations));
                         });

}  // namespace
}  // namespace nibble::kernels

#endif
