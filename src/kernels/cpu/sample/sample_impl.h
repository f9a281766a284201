// Passes over a row of logits, over simd.h: finite ones or -inf, which BestLogit finds out.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

NIBBLE_SIMD uint32_t LaneBits(Full) { return 0xFFFF; }
NIBBLE_SIMD uint32_t LaneBits(Tail tail) { return (1u << tail.n) - 1; }

// +inf if one is NaN.
static float LargestLogit(const float* logits, int64_t n) {
  const auto load = [&](int64_t i) {
    const F32 block = LoadF32(logits + i, Full{});
    return Select(Equal(block, block), block, Set(__builtin_inff()));
  };
  F32 largest[4];
  for (F32& part : largest) part = Set(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int part = 0; part < 4; ++part)
      largest[part] = Max(load(i + part * kLanes), largest[part]);
  for (; i + kLanes <= n; i += kLanes) largest[0] = Max(load(i), largest[0]);
  float best = Largest(Max(Max(largest[0], largest[1]), Max(largest[2], largest[3])));
  for (; i < n; ++i) {
    const float logit = logits[i] == logits[i] ? logits[i] : __builtin_inff();
    if (logit > best) best = logit;
  }
  return best;
}

static void BestLogit(const float* logits, int64_t n, float* value, int64_t* index) {
  *value = LargestLogit(logits, n);
  *index = -1;
  if (*value == -__builtin_inff() || *value == __builtin_inff()) return;
  for (int64_t i = 0; *index < 0; i += kLanes) {
    const int64_t left = n - i;
    const bool whole = left >= kLanes;
    const Tail tail{static_cast<int>(whole ? kLanes : left)};
    const F32 block = whole ? LoadF32(logits + i, Full{}) : LoadF32(logits + i, tail);
    const uint32_t hits = MaskBits(Equal(block, Set(*value))) & LaneBits(tail);
    if (hits != 0) *index = i + __builtin_ctz(hits);
  }
}

// Hidden lanes of a tail read as logit 0: they must not count.
NIBBLE_SIMD F32 Weights(F32 logits, float largest, float inverse_temperature, Full) {
  return ExpOfNonPositive(Mul(Sub(logits, Set(largest)), Set(inverse_temperature)));
}
NIBBLE_SIMD F32 Weights(F32 logits, float largest, float inverse_temperature, Tail tail) {
  const F32 weights = Weights(logits, largest, inverse_temperature, Full{});
  return Select(LessInt(Iota(), SetInt(tail.n)), weights, Set(0.0f));
}

static float SoftmaxWeights(const float* logits, int64_t n, float largest,
                            float inverse_temperature, float* out) {
  F32 sum = Set(0.0f);
  ForEachVector(n, [&](int64_t i, auto count) {
    const F32 weights = Weights(LoadF32(logits + i, count), largest, inverse_temperature, count);
    StoreF32(out + i, weights, count);
    sum = Add(sum, weights);
  });
  return Sum(sum);
}

static float SoftmaxSum(const float* logits, int64_t n, float largest, float inverse_temperature) {
  F32 sum = Set(0.0f);
  ForEachVector(n, [&](int64_t i, auto count) {
    sum = Add(sum, Weights(LoadF32(logits + i, count), largest, inverse_temperature, count));
  });
  return Sum(sum);
}

static int64_t CollectAbove(const float* logits, int64_t n, float threshold, int32_t first,
                            int32_t* ids) {
  int64_t found = 0;
  ForEachVector(n, [&](int64_t i, auto count) {
    const F32 block = LoadF32(logits + i, count);
    uint32_t hits = MaskBits(Less(Set(threshold), block)) & LaneBits(count);
    for (; hits != 0; hits &= hits - 1)
      ids[found++] = first + static_cast<int32_t>(i) + __builtin_ctz(hits);
  });
  return found;
}

static int64_t CountAbove(const float* logits, int64_t n, float value) {
  int64_t found = 0;
  ForEachVector(n, [&](int64_t i, auto count) {
    const Mask above = Less(Set(value), LoadF32(logits + i, count));
    found += __builtin_popcount(MaskBits(above) & LaneBits(count));
  });
  return found;
}

static int64_t CountEqual(const float* logits, int64_t n, float value) {
  int64_t found = 0;
  ForEachVector(n, [&](int64_t i, auto count) {
    const Mask equal = Equal(Set(value), LoadF32(logits + i, count));
    found += __builtin_popcount(MaskBits(equal) & LaneBits(count));
  });
  return found;
}

// A plain loop, which compilers vectorise: a row of 152k logits takes 0.05 ms.
static uint64_t SumHashTerms(const float* logits, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += LogitHashTerm(__builtin_bit_cast(uint32_t, logits[i]), static_cast<uint32_t>(i));
  return sum;
}

}  // namespace nibble::kernels::NIBBLE_ISA
