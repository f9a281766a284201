// A layer of experts at the sizes of Qwen3-30B-A3B, with fewer experts: the moe op, and the linears
// of the same experts one after another, which is what it must not be slower than. NVFP4 weights;
// reports the bytes of the experts used per second.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/ops.h"
#include "numerics/bf16.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kD = 2048;
constexpr int64_t kF = 768;
constexpr int32_t kExperts = 32;
constexpr int32_t kTopK = 8;

std::vector<uint16_t> Ramp(int64_t n) {
  std::vector<uint16_t> values(n);
  for (int64_t i = 0; i < n; ++i)
    values[i] = Bf16FromFloat(static_cast<float>(i * 7919 % 2003) * 0.001f - 1.0f);
  return values;
}

class Layer {
 public:
  Layer(const OpTable& ops, int threads, int64_t t) : pool(threads), x(Ramp(t * kD)), out(t * kD) {
    const std::vector<uint16_t> router_rows = Ramp(kExperts * kD);
    router = Pack(ops, {.format = WeightFormat::kBf16,
                        .n = kExperts,
                        .k = kD,
                        .data = reinterpret_cast<const std::byte*>(router_rows.data())});
    for (int32_t e = 0; e < kExperts; ++e) {
      gate_up.push_back(Random(ops, 2 * kF, kD));
      down.push_back(Random(ops, kD, kF));
      experts.push_back({.gate_up = gate_up.back().get(), .down = down.back().get()});
    }
    const MoeSizes sizes = {.t = t, .d = kD, .f = kF, .experts = kExperts, .top_k = kTopK};
    memory.resize(std::max(ops.moe_workspace(threads, sizes), ops.linear_workspace(t, kD)) + 64);
    auto address = reinterpret_cast<uintptr_t>(memory.data());
    context = {.pool = &pool,
               .workspace = memory.data() + (64 - address % 64) % 64,
               .workspace_bytes = memory.size() - 64};
  }

  int64_t ExpertBytes() const { return gate_up[0]->bytes() + down[0]->bytes(); }

  ThreadPool pool;
  std::vector<uint16_t> x;    // (T, D)
  std::vector<uint16_t> out;  // (T, D)
  std::unique_ptr<PackedWeight> router;
  std::vector<std::unique_ptr<PackedWeight>> gate_up, down;
  std::vector<ExpertWeights> experts;
  std::vector<std::byte> memory;
  OpContext context;

 private:
  std::unique_ptr<PackedWeight> Pack(const OpTable& ops, const QuantView& view) {
    return std::move(*ops.pack_weight({.parts = {&view, 1}, .pool = &pool}));
  }

  std::unique_ptr<PackedWeight> Random(const OpTable& ops, int64_t n, int64_t k) {
    std::vector<std::byte> codes(n * k / 2), scales(n * k / 16, std::byte{0x38});
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i * 7919 >> 3);
    return Pack(ops, {.format = WeightFormat::kNvfp4,
                      .n = n,
                      .k = k,
                      .data = codes.data(),
                      .scales = scales.data(),
                      .global_scale = 0.01f});
  }
};

void Moe(benchmark::State& state) {
  const OpTable& ops = CpuOps();
  const int64_t t = state.range(0);
  Layer layer(ops, static_cast<int>(state.range(1)), t);
  for (auto _ : state) {
    ops.moe(layer.context, {.x = layer.x.data(),
                            .t = t,
                            .d = kD,
                            .router = layer.router.get(),
                            .routing = {.experts = kExperts, .top_k = kTopK},
                            .experts = layer.experts,
                            .f = kF,
                            .out = layer.out.data()});
  }
  if (t == 1) state.SetBytesProcessed(state.iterations() * kTopK * layer.ExpertBytes());
}

// Each of the experts that t tokens would use evenly, with its share of them.
void Linears(benchmark::State& state) {
  const OpTable& ops = CpuOps();
  const int64_t t = state.range(0);
  const int64_t used = std::min<int64_t>(kExperts, t * kTopK);
  const int64_t m = t * kTopK / used;
  Layer layer(ops, static_cast<int>(state.range(1)), t);
  std::vector<uint16_t> hidden(m * 2 * kF), activated(m * kF);
  std::vector<float> y(m * kD);
  for (auto _ : state) {
    for (int64_t e = 0; e < used; ++e) {
      ops.linear(layer.context, {.x = layer.x.data(),
                                 .x_stride = kD,
                                 .weight = layer.gate_up[e].get(),
                                 .y = hidden.data(),
                                 .y_stride = 2 * kF,
                                 .m = m});
      ops.activation(layer.context,
                     {.gate_up = hidden.data(), .out = activated.data(), .t = m, .f = kF});
      ops.linear(layer.context, {.x = activated.data(),
                                 .x_stride = kF,
                                 .weight = layer.down[e].get(),
                                 .y_f32 = y.data(),
                                 .y_stride = kD,
                                 .m = m});
    }
  }
  if (t == 1) state.SetBytesProcessed(state.iterations() * kTopK * layer.ExpertBytes());
}

BENCHMARK(Moe)->ArgsProduct({{1, 4, 64, 512}, {1, 2}})->UseRealTime();
BENCHMARK(Linears)->ArgsProduct({{1, 4, 64, 512}, {1, 2}})->UseRealTime();

}  // namespace
}  // namespace nibble::kernels
