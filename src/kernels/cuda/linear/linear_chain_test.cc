// How long a linear takes in a chain of dependent launches, weights cold: benchmarks, which run by
// name alone (--gtest_also_run_disabled_tests --gtest_filter='CudaLinearChain*').
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/turns.h"
#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

// Weights of one shape, more of them than the cache holds, in turn.
class Chain {
 public:
  static constexpr int64_t kColdBytes = 300 << 20;

  explicit Chain(const OpTable& ops) : ops_(ops) {
    workspace_ = Allocate(256 << 20);
    norm_weight_ = Allocate(65536 * sizeof(float));
    x_ = Allocate(64 << 20);
    y_ = Allocate(64 << 20);
    const std::vector<uint16_t> x = NoiseBf16(1, 4 << 20);
    ops_.device->Upload(x_.data(), x.data(), x.size() * 2);
    const std::vector<float> weight = NoiseF32(2, 65536);
    ops_.device->Upload(norm_weight_.data(), weight.data(), weight.size() * 4);
  }

  void AddWeights(int64_t n, int64_t k, int copies = 0) {
    const Stored stored = MakeWeight(WeightFormat::kNvfp4, n, k, 1, 3e-4f);
    std::vector<std::unique_ptr<PackedWeight>>& weights = weights_[{n, k}];
    int64_t bytes = 0;
    while (copies > 0 ? static_cast<int>(weights.size()) < copies : bytes < kColdBytes) {
      weights.push_back(std::move(*ops_.pack_weight({.parts = {&stored.view, 1}})));
      bytes += weights.back()->bytes();
    }
  }
  int count(int64_t n, int64_t k) { return static_cast<int>(weights_[{n, k}].size()); }
  int64_t bytes(int64_t n, int64_t k) { return weights_[{n, k}][0]->bytes(); }

  OpContext context() {
    return {.stream = ops_.device->stream(),
            .workspace = workspace_.data(),
            .workspace_bytes = workspace_.size()};
  }
  InputNorm norm() { return {.weight = norm_weight_.as<float>()}; }
  uint16_t* x() { return x_.as<uint16_t>(); }
  uint16_t* y() { return y_.as<uint16_t>(); }

  void Linear(int64_t n, int64_t k, int index, int64_t m, bool norms, bool adds) {
    ops_.linear(context(), {.x = x(),
                            .x_stride = k,
                            .norm = norms ? norm() : InputNorm{},
                            .weight = weights_[{n, k}][index].get(),
                            .y = y(),
                            .y_stride = n,
                            .add = adds,
                            .m = m});
  }
  void Norm(int64_t m, int64_t d) {
    ops_.rms_norm(context(), {.x = x(),
                              .delta = y(),
                              .weight = norm_weight_.as<float>(),
                              .out = y() + (16 << 20),
                              .t = m,
                              .d = d});
  }
  void Activation(int64_t m, int64_t f) {
    ops_.activation(context(), {.gate_up = x(), .out = y(), .t = m, .f = f});
  }

  cuda::PreparedTokens Prepare(int64_t k, int64_t m, const cuda::TurnPlan& plan) {
    return cuda::PrepareTokens(
        {.x = x(), .x_stride = k, .m = m, .k = k, .part_tokens = plan.tokens}, workspace_.data(),
        ops_.device->stream());
  }
  void Turns(int64_t n, int64_t k, int index, int64_t m, const cuda::PreparedTokens& tokens,
             const cuda::TurnPlan& plan) {
    cuda::LaunchTurns({.weight = tiles(n, k, index), .x = tokens, .y = y(), .y_stride = n, .m = m},
                      plan, ops_.device->stream());
  }
  const cuda::WeightTiles& tiles(int64_t n, int64_t k, int index) {
    return cuda::AsCuda(*weights_[{n, k}][index]).tiles();
  }

  // Microseconds of what `launch` launches, recorded once.
  double Time(const std::function<void()>& launch) {
    const auto stream = static_cast<cudaStream_t>(ops_.device->stream());
    const auto graph = ops_.device->Record(launch);
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    graph->Launch();
    constexpr int kRepeats = 5;
    cudaEventRecord(begin, stream);
    for (int i = 0; i < kRepeats; ++i) graph->Launch();
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    cudaEventDestroy(begin), cudaEventDestroy(end);
    EXPECT_EQ(ops_.device->failure(), "");
    return 1e3 * ms / kRepeats;
  }

 private:
  Buffer Allocate(size_t bytes) { return std::move(*Buffer::Allocate(bytes, *ops_.device)); }

  const OpTable& ops_;
  Buffer workspace_, norm_weight_, x_, y_;
  std::map<std::pair<int64_t, int64_t>, std::vector<std::unique_ptr<PackedWeight>>> weights_;
};

const OpTable* Gpu() {
  const auto ops = CudaOps();
  return ops ? *ops : nullptr;
}

struct ShapeNk {
  int64_t n, k;
};

TEST(CudaLinearChain, DISABLED_BenchShapes) {
  const OpTable* ops = Gpu();
  if (ops == nullptr) GTEST_SKIP() << "no GPU";
  const double ceiling = ops->read_bandwidth();
  fmt::print("{}: reads {:.0f} GB/s\n", ops->device->name(), ceiling * 1e-9);
  for (const ShapeNk s :
       {ShapeNk{2048, 4096}, {4096, 4096}, {12288, 2048}, {8192, 8192}, {28672, 8192}}) {
    Chain chain(*ops);
    chain.AddWeights(s.n, s.k);
    const int count = chain.count(s.n, s.k);
    const int launches = std::max(count, 40);
    fmt::print("{:6} x {:5}, read {:5.1f} us:", s.n, s.k,
               static_cast<double>(chain.bytes(s.n, s.k)) / ceiling * 1e6);
    for (const int64_t m : {1, 8, 16, 32, 64}) {
      const auto each = [&](auto&& launch) {
        return chain.Time([&] {
          for (int i = 0; i < launches; ++i) launch(i % count);
        }) / launches;
      };
      const double plain = each([&](int i) { chain.Linear(s.n, s.k, i, m, false, false); });
      const double fused = each([&](int i) { chain.Linear(s.n, s.k, i, m, true, true); });
      const double apart = each([&](int i) {
        chain.Norm(m, std::min<int64_t>(s.k, 8192));
        chain.Linear(s.n, s.k, i, m, false, false);
      });
      fmt::print("  M {}: {:.1f} norm+add {:.1f} apart {:.1f}", m, plain, fused, apart);
    }
    fmt::print("\n");
  }
}

// Every way in which a product of up to 128 tokens can be cut, with the preparation of tokens and
// without it.
TEST(CudaLinearChain, DISABLED_BenchTurnPlans) {
  const OpTable* ops = Gpu();
  if (ops == nullptr) GTEST_SKIP() << "no GPU";
  const double ceiling = ops->read_bandwidth();
  fmt::print("{}: reads {:.0f} GB/s\n", ops->device->name(), ceiling * 1e-9);
  for (const ShapeNk s : {ShapeNk{2048, 4096},
                          {5120, 2048},
                          {4096, 4096},
                          {12288, 2048},
                          {4096, 14336},
                          {8192, 8192},
                          {28672, 8192},
                          {8192, 28672}}) {
    Chain chain(*ops);
    chain.AddWeights(s.n, s.k);
    const int count = chain.count(s.n, s.k);
    const int launches = std::max(count, 16);
    fmt::print("{} x {}, read {:.1f} us\n", s.n, s.k,
               static_cast<double>(chain.bytes(s.n, s.k)) / ceiling * 1e6);
    for (const int64_t m : {16, 32, 64, 128}) {
      struct Timed {
        double all, product;
        cuda::TurnPlan plan;
      };
      std::vector<Timed> timed;
      const auto each = [&](auto&& launch) {
        return chain.Time([&] {
          for (int i = 0; i < launches; ++i) launch(i % count);
        }) / launches;
      };
      for (const cuda::TurnPlan& plan : cuda::TurnPlans(chain.tiles(s.n, s.k, 0), m)) {
        const double all =
            each([&](int i) { chain.Turns(s.n, s.k, i, m, chain.Prepare(s.k, m, plan), plan); });
        const cuda::PreparedTokens tokens = chain.Prepare(s.k, m, plan);
        const double product = each([&](int i) { chain.Turns(s.n, s.k, i, m, tokens, plan); });
        timed.push_back({all, product, plan});
      }
      std::ranges::sort(timed, {}, &Timed::all);
      for (size_t i = 0; i < std::min<size_t>(timed.size(), 3); ++i) {
        const auto& [all, product, plan] = timed[i];
        fmt::print(
            "  M {:2}: {:5.1f} us, prepared before {:5.1f} (estimated {:.1f}): {:2} tokens, {} "
            "groups, {:3} x {} x {} CTAs, {} passes of {}\n",
            m, all, product, plan.microseconds, plan.tokens, plan.groups, plan.row_ctas,
            plan.splits, plan.parts, plan.passes, plan.pass_tiles);
      }
    }
  }
}

// The linears of a decoder layer of Llama-3.3-70B, attention left out.
TEST(CudaLinearChain, DISABLED_BenchLlama70Layer) {
  const OpTable* ops = Gpu();
  if (ops == nullptr) GTEST_SKIP() << "no GPU";
  const double ceiling = ops->read_bandwidth();
  Chain chain(*ops);
  constexpr int64_t kD = 8192, kF = 28672, kQkv = 10240;
  constexpr int kLayers = 2;
  for (const ShapeNk s : {ShapeNk{kQkv, kD}, {kD, kD}, {2 * kF, kD}, {kD, kF}})
    chain.AddWeights(s.n, s.k, kLayers);
  const int64_t bytes =
      chain.bytes(kQkv, kD) + chain.bytes(kD, kD) + chain.bytes(2 * kF, kD) + chain.bytes(kD, kF);
  for (const int64_t m : {1, 8}) {
    const auto each = [&](auto&& launch) {
      return chain.Time([&] {
        for (int i = 0; i < 4 * kLayers; ++i) launch(i % kLayers);
      }) / (4 * kLayers);
    };
    const double fused = each([&](int i) {
      chain.Linear(kQkv, kD, i, m, true, false);
      chain.Linear(kD, kD, i, m, false, true);
      chain.Linear(2 * kF, kD, i, m, true, false);
      chain.Activation(m, kF);
      chain.Linear(kD, kF, i, m, false, true);
    });
    const double apart = each([&](int i) {
      chain.Norm(m, kD);
      chain.Linear(kQkv, kD, i, m, false, false);
      chain.Linear(kD, kD, i, m, false, false);
      chain.Norm(m, kD);
      chain.Linear(2 * kF, kD, i, m, false, false);
      chain.Activation(m, kF);
      chain.Linear(kD, kF, i, m, false, false);
    });
    const double no_activation = each([&](int i) {
      chain.Linear(kQkv, kD, i, m, true, false);
      chain.Linear(kD, kD, i, m, false, true);
      chain.Linear(2 * kF, kD, i, m, true, false);
      chain.Linear(kD, kF, i, m, false, true);
    });
    fmt::print(
        "layer, M {}: read {:.1f} us; fused {:.1f}, apart {:.1f}, without activation {:.1f};", m,
        static_cast<double>(bytes) / ceiling * 1e6, fused, apart, no_activation);
    for (const ShapeNk s : {ShapeNk{kQkv, kD}, {kD, kD}, {2 * kF, kD}, {kD, kF}})
      fmt::print("  {}x{}: {:.1f} (read {:.1f})", s.n, s.k,
                 each([&](int i) { chain.Linear(s.n, s.k, i, m, false, false); }),
                 static_cast<double>(chain.bytes(s.n, s.k)) / ceiling * 1e6);
    fmt::print("  activation {:.1f}\n", each([&](int) { chain.Activation(m, kF); }));
  }
}

}  // namespace
}  // namespace nibble::kernels
