// Linears of gate and up that end with their activation have the bits of linear and activation one
// after the other, in every kernel that multiplies by a dense weight.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/turns.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"
#include "kernels/w4a4_ops.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kBf16, WeightFormat::kFp8,
    WeightFormat::kF16,   WeightFormat::kF32,   WeightFormat::kInt4, WeightFormat::kInt8};

std::vector<BlockScales> ScalesOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8:
      return {
          {DType::kF32}, {DType::kF8E8M0, 1, 32}, {DType::kBF16, 128, 128}, {DType::kF32, 1, 32}};
    case WeightFormat::kInt4:
      return {{DType::kF16, 1, 128}, {DType::kF16, 1, 32, true}};
    case WeightFormat::kInt8:
      return {{DType::kF16, 1, 128, true}};
    default:
      return {{}};
  }
}

// Gate and up as they are stored, packed for an activation and as any other linear.
struct GateUp {
  std::array<Stored, 2> stored;
  std::unique_ptr<PackedWeight> paired, plain;

  GateUp(const OpTable& ops, WeightFormat format, int64_t f, int64_t k, BlockScales scales,
         float input_scale = 0.0f) {
    const float tensor_scale = 0.0003f;
    for (uint32_t i = 0; i < 2; ++i) {
      stored[i] =
          MakeWeight(format, f, k, 11 + i, tensor_scale * static_cast<float>(i + 1), scales);
      stored[i].view.input_scale = input_scale;
    }
    const QuantView parts[] = {stored[0].view, stored[1].view};
    paired = std::move(*ops.pack_weight({.parts = parts, .gate_up = true}));
    plain = std::move(*ops.pack_weight({.parts = parts}));
  }
  int64_t f() const { return stored[0].view.n; }
};

using LinearOp = void (*)(const OpContext&, const LinearParams&);
using Workspace = size_t (*)(int64_t, int64_t);

class CudaActivatedLinear : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "no GPU";
  }
  static const OpTable& ops() { return *cuda::SyncedOps(); }

  // By `linear`, m tokens.
  static std::vector<uint16_t> Call(LinearOp linear, Workspace workspace, LinearParams params,
                                    int64_t width) {
    const int64_t k = params.weight->k(), m = params.m;
    const size_t bytes = workspace(m, k) + ops().activated_workspace(m, params.weight->n() / 2);
    std::vector<std::byte> memory(bytes + 1024, std::byte{0xFF});
    std::vector<uint16_t> y(m * width, 0x7FC0);
    params.y = y.data();
    params.y_stride = width;
    linear({.stream = ops().device->stream(), .workspace = memory.data(), .workspace_bytes = bytes},
           params);
    ops().device->Synchronize();
    EXPECT_EQ(ops().device->failure(), "");
    return y;
  }
  static std::vector<uint16_t> Activated(const std::vector<uint16_t>& gate_up, int64_t f,
                                         const Activation& activation) {
    std::vector<uint16_t> out(gate_up.size() / 2);
    ops().activation({}, {.gate_up = gate_up.data(),
                          .out = out.data(),
                          .t = static_cast<int64_t>(out.size()) / f,
                          .f = f,
                          .activation = activation});
    return out;
  }
  static void ExpectBitsOfBoth(const GateUp& weight, int64_t m, LinearOp linear,
                               Workspace workspace) {
    const int64_t f = weight.f(), k = weight.paired->k();
    const auto kind = static_cast<ActivationKind>(m % 3);
    SCOPED_TRACE(testing::Message() << "M " << m << ", F " << f << ", K " << k << ", activation "
                                    << static_cast<int>(kind));
    const Activation activation = {.kind = kind, .alpha = 1.3f, .limit = 0.5f};
    const auto x = MakeActivations(m * k, 7);
    std::vector<float> norm(k, 1.25f), bias(2 * f);
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 13) - 6.0f;
    LinearParams params = {.x = x.data(), .x_stride = k, .m = m};
    if (m % 2 == 0 || k == 8192) params.norm = {.weight = norm.data(), .eps = 1e-5f};
    if (m % 4 < 2) params.bias = bias.data();
    params.weight = weight.plain.get();
    const auto both = Activated(Call(linear, workspace, params, 2 * f), f, activation);
    params.weight = weight.paired.get();
    params.activation = &activation;
    ASSERT_EQ(Call(linear, workspace, params, f), both);
  }
};

TEST_F(CudaActivatedLinear, EveryFormat) {
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const auto& [f, k] :
           {std::pair<int64_t, int64_t>{8, 64}, {168, 1056}, {36, 320}, {72, 2048}}) {
        SCOPED_TRACE(WeightFormatName(format));
        const GateUp weight(ops(), format, f, k, scales);
        EXPECT_EQ(cuda::AsCuda(*weight.paired).pairs_rows(), f % 8 == 0);
        for (const int64_t m : {1, 2, 3, 5, 8, 9, 16, 27, 40, 64, 65, 100, 130, 300}) {
          ExpectBitsOfBoth(weight, m, ops().linear, ops().linear_workspace);
          if (HasFatalFailure()) return;
        }
      }
}

// Many row tiles of a CTA, whose sums stay open from reduction to reduction; many tiles of prompts.
TEST_F(CudaActivatedLinear, RealSizes) {
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kBf16, WeightFormat::kInt4})
    for (const auto& [f, k] :
         {std::pair<int64_t, int64_t>{5288, 4352}, {20000, 512}, {1032, 1168}, {3200, 8192}}) {
      SCOPED_TRACE(WeightFormatName(format));
      const GateUp weight(ops(), format, f, k, {DType::kBF16, 128, 128});
      for (const int64_t m : {1, 4, 7, 8, 12, 16, 30, 33, 64, 129, 2600}) {
        if (m > 1000 && f > 2000) continue;
        ExpectBitsOfBoth(weight, m, ops().linear, ops().linear_workspace);
        if (HasFatalFailure()) return;
      }
    }
}

// However a launch for up to 64 tokens is cut, and in every shape of tiles.
TEST_F(CudaActivatedLinear, EveryPlan) {
  if (!cuda::HasTurns(cuda::TileFormat::kNvfp4)) GTEST_SKIP() << "a GPU without wgmma";
  const Activation activation;
  for (const WeightFormat format : kFormats)
    for (const auto& [f, k] : {std::pair<int64_t, int64_t>{24, 192}, {1480, 1120}, {9000, 576}}) {
      const GateUp weight(ops(), format, f, k, ScalesOf(format)[0]);
      const cuda::WeightTiles& tiles = cuda::AsCuda(*weight.paired).tiles();
      for (const int64_t m : {5, 16, 27, 64, 200}) {
        SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " M " << m << ", F " << f);
        const auto x = MakeActivations(m * k, 7);
        const LinearParams params = {
            .x = x.data(), .x_stride = k, .weight = weight.plain.get(), .m = m};
        const auto both =
            Activated(Call(ops().linear, ops().linear_workspace, params, 2 * f), f, activation);
        std::vector<std::byte> memory(cuda::PreparedBytes(m + 64, k) + cuda::kPieceBytes);
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        std::byte* const aligned =
            memory.data() + (cuda::kPieceBytes - address % cuda::kPieceBytes) % cuda::kPieceBytes;
        const auto expect_bits = [&](int part_tokens, const auto& launch) {
          std::vector<uint16_t> y(m * f, 0xFFFF);
          const cuda::PreparedTokens prepared = cuda::PrepareTokens(
              {.x = x.data(), .x_stride = k, .m = m, .k = k, .part_tokens = part_tokens}, aligned,
              ops().device->stream());
          launch(cuda::PrefillParams{.weight = tiles,
                                     .x = prepared,
                                     .y = y.data(),
                                     .y_stride = f,
                                     .activates = true,
                                     .activation = activation,
                                     .m = m});
          ops().device->Synchronize();
          ASSERT_EQ(ops().device->failure(), "");
          ASSERT_EQ(y, both);
        };
        for (int shape = 0; shape < cuda::PrefillShapes(tiles.format); ++shape) {
          SCOPED_TRACE(testing::Message() << "shape " << shape);
          expect_bits(0, [&](const cuda::PrefillParams& p) {
            cuda::LaunchPrefill(p, ops().device->stream(), shape);
          });
        }
        if (m > cuda::kMaxTurnTokens || !cuda::HasTurns(tiles.format)) continue;
        for (const cuda::TurnPlan& plan : cuda::TurnPlans(tiles, m)) {
          SCOPED_TRACE(testing::Message() << plan.tokens << " tokens, " << plan.groups
                                          << " groups, " << plan.row_ctas << " CTAs");
          expect_bits(plan.tokens, [&](const cuda::PrefillParams& p) {
            cuda::LaunchTurns(p, plan, ops().device->stream());
          });
        }
        if (HasFatalFailure()) return;
      }
    }
}

// y in a layout is what the pass over it makes of rows, whichever kernel multiplies, and by the
// kernels that store it so themselves however they are cut.
TEST_F(CudaActivatedLinear, LaidOutForTheNext) {
  if (ops().x_layout == nullptr) GTEST_SKIP() << "a GPU without layouts";
  const Activation activation;
  void* const stream = ops().device->stream();
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kInt4})
    for (const auto& [f, k] : {std::pair<int64_t, int64_t>{64, 192}, {1472, 1120}, {9024, 320}}) {
      const bool many_rows = f > 4096;  // which take long
      const GateUp weight(ops(), format, f, k, ScalesOf(format)[0]);
      const cuda::WeightTiles& tiles = cuda::AsCuda(*weight.paired).tiles();
      for (const auto& [m, part_tokens] :
           {std::pair<int64_t, int>{5, 16}, {27, 32}, {64, 16}, {64, 64}, {100, 64}}) {
        if (many_rows && (m != 64 || part_tokens != 64)) continue;
        const auto x = MakeActivations(m * k, 7);
        LinearParams params = {.x = x.data(),
                               .x_stride = k,
                               .weight = weight.paired.get(),
                               .activation = &activation,
                               .m = m};
        const auto rows = Call(ops().linear, ops().linear_workspace, params, f);
        const int64_t padded = (m + part_tokens - 1) / part_tokens * part_tokens;
        const auto laid_out = [&](const auto& lay_out) {
          std::vector<uint16_t> y(padded * f);
          lay_out(y);
          ops().device->Synchronize();
          EXPECT_EQ(ops().device->failure(), "");
          return y;
        };
        const auto expected = laid_out([&](std::vector<uint16_t>& y) {
          cuda::PrepareTokens(
              {.x = rows.data(), .x_stride = f, .m = m, .k = f, .part_tokens = part_tokens},
              reinterpret_cast<std::byte*>(y.data()), stream);
        });
        params.y_layout = {part_tokens};
        SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " M " << m << ", F " << f
                                        << ", parts of " << part_tokens);
        ASSERT_EQ(
            laid_out([&](std::vector<uint16_t>& y) {
              const size_t bytes = ops().linear_workspace(m, k) + ops().activated_workspace(m, f);
              std::vector<std::byte> memory(bytes, std::byte{0xFF});
              params.y = y.data();
              ops().linear({.stream = stream, .workspace = memory.data(), .workspace_bytes = bytes},
                           params);
            }),
            expected);
        if (!cuda::HasTurns(tiles.format)) continue;
        std::vector<std::byte> memory(cuda::PreparedBytes(m + 127, k));
        for (const cuda::TurnPlan& plan : cuda::TurnPlans(tiles, m)) {
          if (plan.splits > 1) continue;  // linear.cu lets them store rows alone
          SCOPED_TRACE(testing::Message() << plan.tokens << " tokens, " << plan.groups
                                          << " groups, " << plan.row_ctas << " CTAs");
          ASSERT_EQ(
              laid_out([&](std::vector<uint16_t>& y) {
                const cuda::PreparedTokens prepared = cuda::PrepareTokens(
                    {.x = x.data(), .x_stride = k, .m = m, .k = k, .part_tokens = plan.tokens},
                    memory.data(), stream);
                cuda::LaunchTurns({.weight = tiles,
                                   .x = prepared,
                                   .y = y.data(),
                                   .activates = true,
                                   .activation = activation,
                                   .y_layout = {part_tokens},
                                   .m = m},
                                  plan, stream);
              }),
              expected);
        }
      }
    }
}

// And the next linear reads it so.
TEST_F(CudaActivatedLinear, ReadsWhatIsLaidOut) {
  if (ops().x_layout == nullptr) GTEST_SKIP() << "a GPU without layouts";
  const Activation activation;
  constexpr int64_t kF = 1472, kK = 320, kN = 24000;
  const GateUp gate_up(ops(), WeightFormat::kNvfp4, kF, kK, {});
  const Stored stored = MakeWeight(WeightFormat::kNvfp4, kN, kF, 5, 0.003f);
  const auto down = std::move(*ops().pack_weight({.parts = {&stored.view, 1}}));
  for (const int64_t m : {27, 33, 64}) {
    SCOPED_TRACE(testing::Message() << "M " << m);
    const auto x = MakeActivations(m * kK, 7);
    const auto block = [&](ActivationLayout layout) {
      const size_t bytes = std::max(ops().linear_workspace(m, kF), ops().linear_workspace(m, kK)) +
                           ops().activated_workspace(m, kF);
      std::vector<std::byte> memory(bytes, std::byte{0xFF});
      const OpContext context = {.workspace = memory.data(), .workspace_bytes = bytes};
      std::vector<uint16_t> between(64 * kF, 0x7FC0), y(m * kN, 0x7FC0);
      ops().linear(context, {.x = x.data(),
                             .x_stride = kK,
                             .weight = gate_up.paired.get(),
                             .y = between.data(),
                             .y_stride = kF,
                             .y_layout = layout,
                             .activation = &activation,
                             .m = m});
      ops().linear(context, {.x = between.data(),
                             .x_stride = kF,
                             .x_layout = layout,
                             .weight = down.get(),
                             .y = y.data(),
                             .y_stride = kN,
                             .m = m});
      return y;
    };
    const ActivationLayout layout = ops().x_layout(*down, m);
    ASSERT_FALSE(layout.rows());
    ASSERT_EQ(block(layout), block({}));
  }
}

TEST_F(CudaActivatedLinear, InE4m3) {
  if (ops().linear_fp8 == nullptr) GTEST_SKIP() << "no GPU that multiplies FP8";
  for (const BlockScales& scales : {BlockScales{DType::kBF16}, {DType::kBF16, 128, 128}})
    for (const auto& [f, k] : {std::pair<int64_t, int64_t>{168, 1056}, {36, 320}, {2056, 512}}) {
      const GateUp weight(ops(), WeightFormat::kFp8, f, k, scales);
      for (const int64_t m : {3, 70, 300}) {
        ExpectBitsOfBoth(weight, m, ops().linear_fp8, ops().linear_fp8_workspace);
        if (HasFatalFailure()) return;
      }
    }
}

TEST_F(CudaActivatedLinear, InW4a4) {
  const auto table = CudaOpsWithW4a4();
  if (!table) GTEST_SKIP() << table.error().message();
  for (const auto& [f, k] : {std::pair<int64_t, int64_t>{168, 1056}, {36, 320}, {1032, 512}}) {
    const GateUp weight(ops(), WeightFormat::kNvfp4, f, k, {}, 0.0017f);
    for (const int64_t m : {3, 70, 300}) {
      ExpectBitsOfBoth(weight, m, (*table)->linear_w4a4, (*table)->linear_w4a4_workspace);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CudaActivatedLinear, PairedRowsComeBack) {
  for (const int f : {8, 24, 136})
    for (int64_t row = 0; row < 2 * f; ++row) {
      const auto place = static_cast<int>(cuda::PairedPlace(row, f));
      EXPECT_EQ(cuda::PairedStackRow(place, f), row);
      EXPECT_EQ(cuda::PairedOutput(place), row % f);
    }
}

}  // namespace
}  // namespace nibble::kernels
