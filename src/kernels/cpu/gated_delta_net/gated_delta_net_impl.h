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

// One token of one row of the state; returns what q reads.
template <int kVectors>
NIBBLE_SIMD float DeltaToken(F32 (&state)[kVectors], const float* q, const float* k, F32 decay,
                             float beta, float value) {
  // Two chains each, so that a sum is not bound by latency.
  F32 recalled[2] = {Set(0.0f), Set(0.0f)};
  for (int i = 0; i < kVectors; ++i) {
    state[i] = Mul(state[i], decay);
    recalled[i % 2] = Fma(state[i], LoadF32(k + i * kLanes), recalled[i % 2]);
  }
  const F32 delta = Set(beta * (value - Sum(Add(recalled[0], recalled[1]))));
  F32 read[2] = {Set(0.0f), Set(0.0f)};
  for (int i = 0; i < kVectors; ++i) {
    state[i] = Fma(delta, LoadF32(k + i * kLanes), state[i]);
    read[i % 2] = Fma(state[i], LoadF32(q + i * kLanes), read[i % 2]);
  }
  return Sum(Add(read[0], read[1]));
}

// Rows [row, row + kRows) of the head through all tokens of the block. rows (kRows, width of k).
// The loops over rows are unrolled so that the state lies in registers.
template <int kVectors, int kRows>
NIBBLE_SIMD void RunDeltaRows(const DeltaBlock& b, int64_t row, float* rows) {
  constexpr int64_t kWidth = kVectors * kLanes;
  F32 state[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) state[r][i] = LoadF32(rows + r * kWidth + i * kLanes);
  for (int64_t t = 0; t < b.tokens; ++t) {
    const float* value = b.v + t * b.v_dim + row;
    float* o = b.o + t * b.v_dim + row;
    const F32 decay = Set(b.decay[t]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      o[r] = DeltaToken(state[r], b.q + t * kWidth, b.k + t * kWidth, decay, b.beta[t], value[r]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) StoreF32(rows + r * kWidth + i * kLanes, state[r][i]);
}

// The same where the state's rows may be narrower than those of k: then by way of a wide copy.
template <int kVectors, int kRows>
static void RunDeltaRows(const DeltaBlock& b, int64_t row) {
  constexpr int64_t kWidth = kVectors * kLanes;
  float* rows = b.state + row * b.k_dim;
  if (b.k_dim == kWidth) return RunDeltaRows<kVectors, kRows>(b, row, rows);
  float wide[kRows * kWidth] = {};
  const size_t bytes = static_cast<size_t>(b.k_dim) * sizeof(float);
  for (int r = 0; r < kRows; ++r) std::memcpy(wide + r * kWidth, rows + r * b.k_dim, bytes);
  RunDeltaRows<kVectors, kRows>(b, row, wide);
  for (int r = 0; r < kRows; ++r) std::memcpy(rows + r * b.k_dim, wide + r * kWidth, bytes);
}

// Sixteen rows at a time through the tokens of a prompt: their sums share one tree of shuffles, and
// no token waits for a single row. Bit for bit what DeltaToken does. rows (16, width of k).
template <int kVectors>
static void RunDeltaLanes(const DeltaBlock& b, int64_t row, float* rows) {
  constexpr int64_t kWidth = kVectors * kLanes;
  for (int64_t t = 0; t < b.tokens; ++t) {
    const float* q = b.q + t * kWidth;
    F32 k[kVectors];
    for (int i = 0; i < kVectors; ++i) k[i] = LoadF32(b.k + t * kWidth + i * kLanes);
    const F32 decay = Set(b.decay[t]);
    F32 sums[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      float* state = rows + r * kWidth;
      F32 recalled[2] = {Set(0.0f), Set(0.0f)};
      for (int i = 0; i < kVectors; ++i) {
        const F32 decayed = Mul(LoadF32(state + i * kLanes), decay);
        StoreF32(state + i * kLanes, decayed);
        recalled[i % 2] = Fma(decayed, k[i], recalled[i % 2]);
      }
      sums[r] = Add(recalled[0], recalled[1]);
    }
    const F32 value = LoadF32(b.v + t * b.v_dim + row);
    float delta[kLanes];
    StoreF32(delta, Mul(Set(b.beta[t]), Sub(value, SumRows(sums))));
    for (int r = 0; r < kLanes; ++r) {
      float* state = rows + r * kWidth;
      const F32 change = Set(delta[r]);
      F32 read[2] = {Set(0.0f), Set(0.0f)};
      for (int i = 0; i < kVectors; ++i) {
        const F32 next = Fma(change, k[i], LoadF32(state + i * kLanes));
        StoreF32(state + i * kLanes, next);
        read[i % 2] = Fma(next, LoadF32(q + i * kLanes), read[i % 2]);
      }
      sums[r] = Add(read[0], read[1]);
    }
    StoreF32(b.o + t * b.v_dim + row, SumRows(sums));
  }
}

template <int kVectors>
static void RunDeltaBlock(const DeltaBlock& b) {
  // As many as keep the processor busy while a row's sum is on its way, and fit its registers.
  constexpr int kRows = kVectors > 8 ? 1 : kNativeLanes == kLanes ? 3 : 2;
  int64_t row = 0;
  // One token streams the state from memory, which a row at a time does as fast.
  const bool lanes = b.tokens > 1 && b.k_dim == kVectors * kLanes;
  for (; lanes && row + kLanes <= b.v_dim; row += kLanes)
    RunDeltaLanes<kVectors>(b, row, b.state + row * b.k_dim);
  for (; row + kRows <= b.v_dim; row += kRows) RunDeltaRows<kVectors, kRows>(b, row);
  for (; row < b.v_dim; ++row) RunDeltaRows<kVectors, 1>(b, row);
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
