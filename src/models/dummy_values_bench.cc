// Bytes per second and thread of made-up weights.
#include <benchmark/benchmark.h>

#include <vector>

#include "models/dummy_values.h"

namespace nibble::models {
namespace {

void Fill(benchmark::State& state, const DummyValues& values) {
  std::vector<std::byte> bytes(size_t{1} << 24);
  for (auto _ : state) {
    FillDummy(values, 0, bytes, nullptr);
    benchmark::DoNotOptimize(bytes.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes.size()));
}

using Kind = DummyValues::Kind;
BENCHMARK_CAPTURE(Fill, nvfp4_codes, DummyValues{.kind = Kind::kBits});
BENCHMARK_CAPTURE(Fill, scales, DummyValues{.kind = Kind::kE4m3Scales});
BENCHMARK_CAPTURE(Fill, fp8_codes, DummyValues{.kind = Kind::kE4m3Codes});
BENCHMARK_CAPTURE(Fill, bf16,
                  DummyValues{.kind = Kind::kFloats, .dtype = DType::kBF16, .spread = 0.02f});

}  // namespace
}  // namespace nibble::models
