// The leaves of Mamba-2 over simd.h: recurrence, gate and norm.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

// kRows rows of the state, from `row` on, through all tokens of the block.
template <int kVectors, int kRows>
NIBBLE_SIMD void RunMamba2Rows(const Mamba2Block& block, int64_t row) {
  F32 state[kRows][kVectors];
  const auto each_vector = [&](auto&& body) {
    for (int i = 0; i < kVectors; ++i) {
      const int64_t left = block.state_dim - i * kLanes;
      for (int r = 0; r < kRows; ++r) {
        float* at = block.state + (row + r) * block.state_dim + i * kLanes;
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

  for (int64_t t = 0; t < block.tokens; ++t) {
    const float* b = block.b + t * block.bc_stride;
    const float* c = block.c + t * block.bc_stride;
    float* xy = block.xy + t * block.xy_stride + row;
    const F32 decay = Set(block.decay[t]);
    for (int r = 0; r < kRows; ++r) {
      const F32 input = Set(block.dt[t] * xy[r]);
      F32 read[2] = {Set(0.0f), Set(0.0f)};  // two chains, so that the sum is not bound by latency
      for (int i = 0; i < kVectors; ++i) {
        state[r][i] = Fma(input, LoadF32(b + i * kLanes), Mul(state[r][i], decay));
        read[i % 2] = Fma(state[r][i], LoadF32(c + i * kLanes), read[i % 2]);
      }
      xy[r] = Sum(Add(read[0], read[1])) + block.d * xy[r];
    }
  }
  each_vector([&](int r, int i, float* at, auto count) { StoreF32(at, state[r][i], count); });
}

template <int kVectors>
static void RunMamba2Block(const Mamba2Block& block) {
  constexpr int kRows = kVectors <= 8 ? 2 : 1;
  int64_t row = 0;
  for (; row + kRows <= block.head_dim; row += kRows) RunMamba2Rows<kVectors, kRows>(block, row);
  if (row < block.head_dim) RunMamba2Rows<kVectors, 1>(block, row);
}

static void Mamba2Rows(const Mamba2Block& block) {
  switch (PaddedStateDim(block.state_dim) / kLanes) {
    case 1:
      return RunMamba2Block<1>(block);
    case 2:
      return RunMamba2Block<2>(block);
    case 4:
      return RunMamba2Block<4>(block);
    case 8:
      return RunMamba2Block<8>(block);
    default:
      return RunMamba2Block<kMaxMamba2StateDim / kLanes>(block);
  }
}

static void GateThenNorm(float* y, const uint16_t* z, const float* weight, int64_t n, float eps,
                         uint16_t* out) {
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreF32(y + i, Mul(LoadF32(y + i, count), Silu(LoadBf16(z + i, count))), count);
  });
  const float mean = SumOfSquaresF32(y, n) / static_cast<float>(n);
  const F32 inverse = Set(1.0f / __builtin_sqrtf(mean + eps));
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreBf16(out + i, Mul(Mul(LoadF32(y + i, count), inverse), LoadF32(weight + i, count)), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
