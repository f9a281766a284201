// One-thread throughput of the number formats: values per second of encoding, decoding and of
// quantising blocks.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kValues = 1 << 14;  // stays in the first two caches

// Bell-shaped like weights: a sum of four uniform values in (-1, 1).
std::vector<float> Weights() {
  std::vector<float> values(kValues);
  uint32_t state = 1;
  for (float& value : values) {
    value = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      value += static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
  }
  return values;
}

template <auto kEncode>
void BM_Encode(benchmark::State& state) {
  const std::vector<float> values = Weights();
  std::vector<uint16_t> codes(kValues);
  for (auto _ : state) {
    for (int64_t i = 0; i < kValues; ++i) codes[i] = kEncode(values[i]);
    benchmark::DoNotOptimize(codes.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kValues);
}
BENCHMARK(BM_Encode<E2M1FromFloat>)->Name("encode/e2m1");
BENCHMARK(BM_Encode<E4M3FromFloat>)->Name("encode/e4m3");
BENCHMARK(BM_Encode<E8M0FromFloat>)->Name("encode/e8m0");
BENCHMARK(BM_Encode<Bf16FromFloat>)->Name("encode/bf16");
BENCHMARK(BM_Encode<F16FromFloat>)->Name("encode/f16");

template <auto kDecode, typename Code, int kCodes>
void BM_Decode(benchmark::State& state) {
  std::vector<Code> codes(kValues);
  for (int64_t i = 0; i < kValues; ++i) codes[i] = static_cast<Code>(i * 7919 % kCodes);
  std::vector<float> values(kValues);
  for (auto _ : state) {
    for (int64_t i = 0; i < kValues; ++i) values[i] = kDecode(codes[i]);
    benchmark::DoNotOptimize(values.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kValues);
}
BENCHMARK(BM_Decode<E2M1ToFloat, uint8_t, 16>)->Name("decode/e2m1");
BENCHMARK(BM_Decode<E4M3ToFloat, uint8_t, 256>)->Name("decode/e4m3");
BENCHMARK(BM_Decode<E8M0ToFloat, uint8_t, 256>)->Name("decode/e8m0");
BENCHMARK(BM_Decode<Bf16ToFloat, uint16_t, 65536>)->Name("decode/bf16");
BENCHMARK(BM_Decode<F16ToFloat, uint16_t, 65536>)->Name("decode/f16");

void BM_Nvfp4(benchmark::State& state,
              uint8_t (*quantize)(const float* values, float tensor_scale, uint8_t* codes)) {
  const std::vector<float> values = Weights();
  const float tensor_scale = Nvfp4TensorScale(MaxMagnitude(values.data(), kValues));
  std::vector<uint8_t> codes(kValues / 2);
  std::vector<uint8_t> scales(kValues / kNvfp4Block);
  for (auto _ : state) {
    for (int64_t block = 0; block < kValues / kNvfp4Block; ++block)
      scales[block] = quantize(&values[block * kNvfp4Block], tensor_scale, &codes[block * 8]);
    benchmark::DoNotOptimize(codes.data());
    benchmark::DoNotOptimize(scales.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kValues);
}
BENCHMARK_CAPTURE(BM_Nvfp4, quantize_max, Nvfp4QuantizeBlockMax);
BENCHMARK_CAPTURE(BM_Nvfp4, quantize_mse_plain, Nvfp4QuantizeBlockMse);

void BM_Mxfp4(benchmark::State& state) {
  const std::vector<float> values = Weights();
  std::vector<uint8_t> codes(kValues / 2);
  std::vector<uint8_t> scales(kValues / kMxfp4Block);
  for (auto _ : state) {
    for (int64_t block = 0; block < kValues / kMxfp4Block; ++block)
      scales[block] = Mxfp4QuantizeBlock(&values[block * kMxfp4Block], &codes[block * 16]);
    benchmark::DoNotOptimize(codes.data());
    benchmark::DoNotOptimize(scales.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kValues);
}
BENCHMARK(BM_Mxfp4);

}  // namespace
}  // namespace nibble
