// Weights per second and thread of the scale search, and of the plain search that defines it.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "quantize/scale_search.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kWeights = 1 << 16;

std::vector<float> Weights() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> weights(kWeights);
  for (float& weight : weights) weight = normal(random);
  return weights;
}

template <typename Quantize>
void Run(benchmark::State& state, const Quantize& quantize) {
  const std::vector<float> weights = Weights();
  std::vector<uint8_t> codes(kWeights / 2);
  int64_t sum = 0;
  for (auto _ : state) {
    for (int64_t i = 0; i < kWeights; i += kNvfp4Block) sum += quantize(&weights[i], &codes[i / 2]);
    benchmark::DoNotOptimize(sum);
    benchmark::DoNotOptimize(codes.data());
  }
  state.SetItemsProcessed(state.iterations() * kWeights);
}

float TensorScale() { return Nvfp4TensorScale(MaxMagnitude(Weights().data(), kWeights)); }

void BM_ScaleSearch(benchmark::State& state) {
  const ScaleSearch search(TensorScale());
  Run(state, [&](const float* values, uint8_t* codes) { return search.Quantize(values, codes); });
}
BENCHMARK(BM_ScaleSearch);

void BM_PlainSearch(benchmark::State& state) {
  const float scale = TensorScale();
  Run(state, [&](const float* values, uint8_t* codes) {
    return Nvfp4QuantizeBlockMse(values, scale, codes);
  });
}
BENCHMARK(BM_PlainSearch);

void BM_Tables(benchmark::State& state) {
  for (auto _ : state) {
    const ScaleSearch search(0.0001f);
    benchmark::DoNotOptimize(&search);
  }
}
BENCHMARK(BM_Tables);

}  // namespace
}  // namespace nibble::quantize
