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

// What follows of the rule that ops.h states: with S of before the token,
//   recalled = e^g (S k),  delta = beta (v - recalled),  o = e^g (S q) + delta (k q),
//   S = e^g S + delta kT,
// so that a prompt's tokens read and write a state's row once each: what a token adds is added
// while the next one reads. Products add up in kLanes chains in order of k.

// k q of each token of the block.
template <int kVectors>
NIBBLE_SIMD void KeyReads(const DeltaBlock& b, float (&reads)[kDeltaTokens]) {
  constexpr int64_t kWidth = kVectors * kLanes;
  for (int64_t t = 0; t < b.tokens; ++t) {
    F32 sum = Set(0.0f);
    for (int64_t i = 0; i < kWidth; i += kLanes)
      sum = Fma(LoadF32(b.k + t * kWidth + i), LoadF32(b.q + t * kWidth + i), sum);
    reads[t] = Sum(sum);
  }
}

// A token between what its rows' dot products are and what they add: one row, or one per lane.
NIBBLE_SIMD F32 DeltaOf(F32 recalled, F32 value, F32 decay, F32 beta) {
  return Mul(beta, Sub(value, Mul(decay, recalled)));
}
NIBBLE_SIMD F32 OutputOf(F32 read, F32 delta, F32 decay, F32 key_read) {
  return Fma(delta, key_read, Mul(decay, read));
}
NIBBLE_SIMD F32 NextState(F32 state, F32 delta, F32 key, F32 decay) {
  return Fma(delta, key, Mul(state, decay));
}

// Rows [row, row + kRows) of the head through all tokens of the block. rows (kRows, width of k).
// The loops over rows are unrolled so that the state lies in registers.
template <int kVectors, int kRows>
NIBBLE_SIMD void RunDeltaRows(const DeltaBlock& b, const float* key_reads, int64_t row,
                              float* rows) {
  constexpr int64_t kWidth = kVectors * kLanes;
  F32 state[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) state[r][i] = LoadF32(rows + r * kWidth + i * kLanes);
  for (int64_t t = 0; t < b.tokens; ++t) {
    const float* q = b.q + t * kWidth;
    const float* k = b.k + t * kWidth;
    const F32 decay = Set(b.decay[t]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      F32 recalled = Set(0.0f);
      F32 read = Set(0.0f);
      for (int i = 0; i < kVectors; ++i) {
        recalled = Fma(state[r][i], LoadF32(k + i * kLanes), recalled);
        read = Fma(state[r][i], LoadF32(q + i * kLanes), read);
      }
      const int64_t at = t * b.v_dim + row + r;
      const F32 delta = DeltaOf(Set(Sum(recalled)), Set(b.v[at]), decay, Set(b.beta[t]));
      b.o[at] = FirstLane(OutputOf(Set(Sum(read)), delta, decay, Set(key_reads[t])));
      for (int i = 0; i < kVectors; ++i)
        state[r][i] = NextState(state[r][i], delta, LoadF32(k + i * kLanes), decay);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) StoreF32(rows + r * kWidth + i * kLanes, state[r][i]);
}

// The same where the state's rows may be narrower than those of k: then by way of a wide copy.
template <int kVectors, int kRows>
static void RunDeltaRows(const DeltaBlock& b, const float* key_reads, int64_t row) {
  constexpr int64_t kWidth = kVectors * kLanes;
  float* rows = b.state + row * b.k_dim;
  if (b.k_dim == kWidth) return RunDeltaRows<kVectors, kRows>(b, key_reads, row, rows);
  float wide[kRows * kWidth] = {};
  const size_t bytes = static_cast<size_t>(b.k_dim) * sizeof(float);
  for (int r = 0; r < kRows; ++r) std::memcpy(wide + r * kWidth, rows + r * b.k_dim, bytes);
  RunDeltaRows<kVectors, kRows>(b, key_reads, row, wide);
  for (int r = 0; r < kRows; ++r) std::memcpy(rows + r * b.k_dim, wide + r * kWidth, bytes);
}

// Sixteen rows (16, width of k): adds what the token before adds, delta (16) times its k, and reads
// what is recalled by k and read by q meanwhile, sums (16) each.
template <int kVectors, bool kAdd, bool kRead>
NIBBLE_SIMD void PassDeltaLanes(float* rows, const float* k_before, float decay, const float* delta,
                                const float* k, const float* q, F32* recalled, F32* read) {
  F32 added[kVectors], key[kVectors], query[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    if constexpr (kAdd) added[i] = LoadF32(k_before + i * kLanes);
    if constexpr (kRead) key[i] = LoadF32(k + i * kLanes);
    if constexpr (kRead) query[i] = LoadF32(q + i * kLanes);
  }
  for (int r = 0; r < kLanes; ++r, rows += kVectors * kLanes) {
    F32 recalled_sum = Set(0.0f);
    F32 read_sum = Set(0.0f);
    for (int i = 0; i < kVectors; ++i) {
      F32 state = LoadF32(rows + i * kLanes);
      if constexpr (kAdd) {
        state = NextState(state, Set(delta[r]), added[i], Set(decay));
        StoreF32(rows + i * kLanes, state);
      }
      if constexpr (kRead) {
        recalled_sum = Fma(state, key[i], recalled_sum);
        read_sum = Fma(state, query[i], read_sum);
      }
    }
    if constexpr (kRead) {
      recalled[r] = recalled_sum;
      read[r] = read_sum;
    }
  }
}

// Sixteen rows at a time through the tokens of a prompt: their sums share one tree of shuffles, and
// no token waits for a single row. Bit for bit what RunDeltaRows does. rows (16, width of k).
template <int kVectors>
static void RunDeltaLanes(const DeltaBlock& b, const float* key_reads, int64_t row, float* rows) {
  constexpr int64_t kWidth = kVectors * kLanes;
  float delta[kLanes];
  F32 recalled[kLanes];
  F32 read[kLanes];
  for (int64_t t = 0; t < b.tokens; ++t) {
    const float* k = b.k + t * kWidth;
    const float* q = b.q + t * kWidth;
    if (t == 0)
      PassDeltaLanes<kVectors, false, true>(rows, nullptr, 1.0f, nullptr, k, q, recalled, read);
    else
      PassDeltaLanes<kVectors, true, true>(rows, k - kWidth, b.decay[t - 1], delta, k, q, recalled,
                                           read);
    const int64_t at = t * b.v_dim + row;
    const F32 decay = Set(b.decay[t]);
    const F32 change = DeltaOf(SumRows(recalled), LoadF32(b.v + at), decay, Set(b.beta[t]));
    StoreF32(delta, change);
    StoreF32(b.o + at, OutputOf(SumRows(read), change, decay, Set(key_reads[t])));
  }
  PassDeltaLanes<kVectors, true, false>(rows, b.k + (b.tokens - 1) * kWidth, b.decay[b.tokens - 1],
                                        delta, nullptr, nullptr, recalled, read);
}

template <int kVectors>
static void RunDeltaBlock(const DeltaBlock& b) {
  // As many as keep the processor busy while a row's sum is on its way, and fit its registers.
  constexpr int kRows = kVectors > 8 ? 1 : kNativeLanes == kLanes ? 3 : 2;
  float key_reads[kDeltaTokens];
  KeyReads<kVectors>(b, key_reads);
  int64_t row = 0;
  // One token streams the state from memory, which a row at a time does as fast.
  const bool lanes = b.tokens > 1 && b.k_dim == kVectors * kLanes;
  for (; lanes && row + kLanes <= b.v_dim; row += kLanes)
    RunDeltaLanes<kVectors>(b, key_reads, row, b.state + row * b.k_dim);
  for (; row + kRows <= b.v_dim; row += kRows) RunDeltaRows<kVectors, kRows>(b, key_reads, row);
  for (; row < b.v_dim; ++row) RunDeltaRows<kVectors, 1>(b, key_reads, row);
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
