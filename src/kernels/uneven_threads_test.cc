// Linears have the same bits however cores of different speeds share their panels: pools of 1 to 64
// threads whose speeds differ as those of GB10's cores do, or more.
#include <gtest/gtest.h>

#include <vector>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kernels/benchmark_weight.h"
#include "kernels/ops.h"

namespace nibble::kernels {
namespace {

std::vector<uint16_t> RunLinear(const OpTable& ops, const PackedWeight& weight, ThreadPool& pool,
                                int64_t m) {
  std::vector<uint16_t> x(m * weight.k()), y(m * weight.n());
  BenchBits bits;
  for (uint16_t& value : x) value = static_cast<uint16_t>(0x3F00 + (bits.Next() & 0x80FFu));
  Buffer workspace = *Buffer::Allocate(ops.linear_workspace(m, weight.k()));
  const OpContext context = {
      .pool = &pool, .workspace = workspace.data(), .workspace_bytes = workspace.size()};
  ops.linear(context, {.x = x.data(),
                       .x_stride = weight.k(),
                       .weight = &weight,
                       .y = y.data(),
                       .y_stride = weight.n(),
                       .m = m});
  return y;
}

TEST(UnevenThreads, LinearsHaveTheSameBits) {
  constexpr int64_t kN = 1040, kK = 192;  // 65 panels
  const OpTable& ops = CpuOps();
  ThreadPool one(1);
  const auto weight =
      *MakeBenchWeight(ops, one, WeightFormat::kNvfp4, ActivationFormat::kInt16, kN, kK);
  for (const int64_t m : {1, 5, 40}) {
    const std::vector<uint16_t> expected = RunLinear(ops, *weight, one, m);
    for (const int threads : {2, 3, 7, 20, 64}) {
      std::vector<ThreadPlace> places;
      for (int i = 0; i < threads; ++i)
        places.push_back({.speed = i < threads / 2 ? 3.9 : 2.1 - 0.03 * i});
      ThreadPool pool(places);
      EXPECT_EQ(RunLinear(ops, *weight, pool, m), expected) << threads << " threads, M " << m;
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
