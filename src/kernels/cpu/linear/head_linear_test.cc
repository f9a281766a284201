// One linear per head: the bits of linear itself, whatever the tokens and the threads; ref agrees.
#include <gtest/gtest.h>

#include "base/thread_pool.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

class HeadLinearVariant : public testing::TestWithParam<std::string> {
 protected:
  const OpTable& ops() const { return **CpuOpsVariant(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, HeadLinearVariant, testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param; });

constexpr int64_t kHeads = 5;
constexpr int64_t kXGap = 3, kYGap = 2;  // between heads
constexpr uint16_t kUntouched = 0x1234;

struct Sizes {
  int64_t t, n, k;
  int64_t x_stride() const { return kHeads * (k + kXGap) + 1; }
  int64_t y_stride() const { return kHeads * (n + kYGap) + 1; }
};

std::vector<std::unique_ptr<PackedWeight>> PackHeads(const OpTable& ops, WeightFormat format,
                                                     Sizes s) {
  Runner runner(ops);
  std::vector<std::unique_ptr<PackedWeight>> weights;
  for (int64_t h = 0; h < kHeads; ++h) {
    const Stored stored = MakeWeight(format, s.n, s.k, static_cast<uint32_t>(10 + h), 0.01f);
    weights.push_back(runner.Pack({&stored.view, 1}, ActivationFormat::kBf16));
  }
  return weights;
}

std::vector<uint16_t> RunHeads(const OpTable& ops,
                               const std::vector<std::unique_ptr<PackedWeight>>& weights, Sizes s,
                               const std::vector<uint16_t>& x, int threads) {
  ThreadPool pool(threads);
  const size_t bytes = ops.head_linear_workspace(threads, s.t, s.k);
  Buffer workspace = std::move(*Buffer::Allocate(bytes));
  std::vector<const PackedWeight*> heads;
  for (const auto& weight : weights) heads.push_back(weight.get());
  std::vector<uint16_t> y(s.t * s.y_stride(), kUntouched);
  ops.head_linear({.pool = &pool, .workspace = workspace.data(), .workspace_bytes = bytes},
                  {.x = x.data(),
                   .x_stride = s.x_stride(),
                   .x_head_stride = s.k + kXGap,
                   .weights = heads,
                   .y = y.data(),
                   .y_stride = s.y_stride(),
                   .y_head_stride = s.n + kYGap,
                   .t = s.t});
  return y;
}

TEST_P(HeadLinearVariant, GivesTheBitsOfALinearPerHead) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kNvfp4})
    for (const Sizes s : {Sizes{1, 40, 32}, Sizes{3, 16, 48}, Sizes{300, 24, 16}}) {
      SCOPED_TRACE(testing::Message() << "T " << s.t << ", N " << s.n << ", K " << s.k);
      const std::vector<uint16_t> x = MakeActivations(s.t * s.x_stride(), 7);
      const auto weights = PackHeads(ops(), format, s);
      const std::vector<uint16_t> got = RunHeads(ops(), weights, s, x, 3);
      EXPECT_EQ(got, RunHeads(ops(), weights, s, x, 1));
      const auto ref_weights = PackHeads(RefOps(), format, s);
      const std::vector<uint16_t> reference = RunHeads(RefOps(), ref_weights, s, x, 1);
      std::vector<uint16_t> expected(got.size(), kUntouched), ref_expected = expected;
      for (int64_t h = 0; h < kHeads; ++h) {
        std::vector<uint16_t> head;
        for (int64_t t = 0; t < s.t; ++t) {
          const auto from = x.begin() + t * s.x_stride() + h * (s.k + kXGap);
          head.insert(head.end(), from, from + s.k);
        }
        const std::vector<uint16_t> y = Runner(ops()).LinearBf16(*weights[h], head);
        const std::vector<uint16_t> ref_y = Runner(RefOps()).LinearBf16(*ref_weights[h], head);
        for (int64_t t = 0; t < s.t; ++t) {
          const int64_t at = t * s.y_stride() + h * (s.n + kYGap);
          std::copy_n(y.begin() + t * s.n, s.n, expected.begin() + at);
          std::copy_n(ref_y.begin() + t * s.n, s.n, ref_expected.begin() + at);
        }
      }
      EXPECT_EQ(got, expected);
      EXPECT_EQ(reference, ref_expected);
    }
}

}  // namespace
}  // namespace nibble::kernels
