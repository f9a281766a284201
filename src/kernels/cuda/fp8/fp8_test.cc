// Times of linear_fp8; what it computes: kernels/linear_fp8_parity_test.cc.
#include "kernels/cuda/fp8/fp8.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

// Prompts, beside the same weight with BF16 activations.
TEST(CudaFp8, DISABLED_Bench) {
  const OpTable* ops = cuda::SyncedOps();
  if (ops == nullptr || ops->linear_fp8 == nullptr) GTEST_SKIP() << "no GPU that multiplies FP8";
  Device& device = *ops->device;
  constexpr int kTurns = 20;
  const auto microseconds = [&](const auto& run) {
    run();
    const auto begin = device.Mark();
    for (int i = 0; i < kTurns; ++i) run();
    const auto end = device.Mark();
    device.Synchronize();
    return device.SecondsBetween(*begin, *end) / kTurns * 1e6;
  };
  for (const BlockScales& scales : {BlockScales{DType::kBF16}, {DType::kBF16, 128, 128}})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{4096, 4096}, {16384, 4096}}) {
      const Stored stored = MakeWeight(WeightFormat::kFp8, n, k, 1, 1.0f, scales);
      const auto weight = Runner(*ops).Pack({&stored.view, 1}, ActivationFormat::kBf16);
      for (const int64_t m : {128, 512, 2048}) {
        const auto values = MakeActivations(m * k, 3);
        Buffer x = std::move(*Buffer::Allocate(m * k * 2, device));
        Buffer y = std::move(*Buffer::Allocate(m * n * 2, device));
        device.Upload(x.data(), values.data(), m * k * 2);
        const size_t bytes = std::max(cuda::LinearFp8Workspace(m, k), cuda::LinearWorkspace(m, k));
        Buffer workspace = std::move(*Buffer::Allocate(bytes, device));
        const OpContext context = {
            .stream = device.stream(), .workspace = workspace.data(), .workspace_bytes = bytes};
        const LinearParams params = {.x = x.as<uint16_t>(),
                                     .x_stride = k,
                                     .weight = weight.get(),
                                     .y = y.as<uint16_t>(),
                                     .y_stride = n,
                                     .m = m};
        const double fp8 = microseconds([&] { cuda::LinearFp8(context, params); });
        const double bf16 = microseconds([&] { cuda::Linear(context, params); });
        const double flops = 2e-6 * static_cast<double>(m * n * k);
        fmt::print(
            "{:5} x {}, a scale per {:4} columns, {:4} tokens: {:6.1f} us, {:4.0f} TFLOP/s; "
            "x in BF16 {:6.1f} us, {:4.0f}\n",
            n, k, std::min(k, scales.block_k), m, fp8, flops / fp8, bf16, flops / bf16);
        ASSERT_EQ(device.failure(), "");
      }
    }
}

}  // namespace
}  // namespace nibble::kernels
