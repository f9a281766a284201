// The leaves of Gated DeltaNet over simd.h: unit vectors, recurrence, gated norm.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

NIBBLE_SIMD float SumOfSquaresF32(const float* x, int64_t n) {
  F32 sum = Set(0.0f);
  ForEachVector(n, [&](int64_t i, auto count) {
    const F32 value = LoadF32(x + i, count);
    sum = Fma(value, value, sum);
  });
  return Sum(sum);
}

static void UnitRows(float* rows, int64_t n, int64_t m, int64_t stride, float scale) {
  for (int64_t t = 0; t < m; ++t) {
    float* row = rows + t * stride;
    const F32 factor = Set(scale / __builtin_sqrtf(SumOfSquaresF32(row, n) + 1e-6f));
    ForEachVector(n, [&](int64_t i, auto count) {
      StoreF32(row + i, Mul(LoadF32(row + i, count), factor), count);
    });
  }
}

// kRows rows of the state, from `row` on, through all tokens of the block.
template <int kVectors, int kRows>
NIBBLE_SIMD void RunDeltaRows(const DeltaBlock& b, int64_t row) {
  F32 state[kRows][kVectors];
  const auto each_vector = [&](auto&& body) {
    for (int i = 0; i < kVectors; ++i) {
      const int64_t left = b.k_dim - i * kLanes;
      for (int r = 0; r < kRows; ++r) {
        float* at = b.state + (row + r) * b.k_dim + i * kLanes;
        if (left >= kLanes)
          body(r, i, at, Full{});
        else if (left > 0)
          body(r, i, at, Tail{static_cast<int>(left)});
      }
    }
  };
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) state[r][i] = Set(0.0f);
  each_vector([&](int r, int i, float* at, auto count) { state[r][i] = LoadF32(at, count); });

  constexpr int64_t kWidth = kVectors * kLanes;
  for (int64_t t = 0; t < b.tokens; ++t) {
    const float* k = b.k + t * kWidth;
    const float* q = b.q + t * kWidth;
    const F32 decay = Set(b.decay[t]);
    for (int r = 0; r < kRows; ++r) {
      // Two chains each, so that a sum is not bound by latency.
      F32 recalled[2] = {Set(0.0f), Set(0.0f)};
      for (int i = 0; i < kVectors; ++i) {
        state[r][i] = Mul(state[r][i], decay);
        recalled[i % 2] = Fma(state[r][i], LoadF32(k + i * kLanes), recalled[i % 2]);
      }
      const float value = b.v[t * b.v_dim + row + r];
      const F32 delta = Set(b.beta[t] * (value - Sum(Add(recalled[0], recalled[1]))));
      F32 read[2] = {Set(0.0f), Set(0.0f)};
      for (int i = 0; i < kVectors; ++i) {
        state[r][i] = Fma(delta, LoadF32(k + i * kLanes), state[r][i]);
        read[i % 2] = Fma(state[r][i], LoadF32(q + i * kLanes), read[i % 2]);
      }
      b.o[t * b.v_dim + row + r] = Sum(Add(read[0], read[1]));
    }
  }
  each_vector([&](int r, int i, float* at, auto count) { StoreF32(at, state[r][i], count); });
}

template <int kVectors>
static void RunDeltaBlock(const DeltaBlock& b) {
  constexpr int kRows = kVectors <= 8 ? 2 : 1;
  int64_t row = 0;
  for (; row + kRows <= b.v_dim; row += kRows) RunDeltaRows<kVectors, kRows>(b, row);
  if (row < b.v_dim) RunDeltaRows<kVectors, 1>(b, row);
}

static void DeltaRows(const DeltaBlock& block) {
  switch (PaddedKeyDim(block.k_dim) / kLanes) {
    case 1:
      return RunDeltaBlock<1>(block);
    case 2:
      return RunDeltaBlock<2>(block);
    case 4:
      return RunDeltaBlock<4>(block);
    case 8:
      return RunDeltaBlock<8>(block);
    default:
      return RunDeltaBlock<kMaxDeltaKeyDim / kLanes>(block);
  }
}

static void GatedNorm(const float* x, const uint16_t* z, const float* weight, int64_t n, float eps,
                      bool sigmoid, uint16_t* out) {
  const float mean = SumOfSquaresF32(x, n) / static_cast<float>(n);
  const F32 inverse = Set(1.0f / __builtin_sqrtf(mean + eps));
  ForEachVector(n, [&](int64_t i, auto count) {
    const F32 gate = LoadBf16(z + i, count);
    const F32 normed = Mul(Mul(LoadF32(x + i, count), inverse), LoadF32(weight + i, count));
    StoreBf16(out + i, TimesSigmoid(sigmoid ? normed : Mul(normed, gate), gate), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
