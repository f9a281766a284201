// Half-split rotation and the FP8 cache encoding over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

static void Rotate(const uint16_t* in, const float* cos, const float* sin, int64_t half,
                   uint16_t* out) {
  ForEachVector(half, [&](int64_t i, auto count) {
    const F32 a = LoadBf16(in + i, count);
    const F32 b = LoadBf16(in + half + i, count);
    const F32 c = LoadF32(cos + i, count);
    const F32 s = LoadF32(sin + i, count);
    StoreBf16(out + i, Sub(RoundToBf16(Mul(a, c)), RoundToBf16(Mul(b, s))), count);
    StoreBf16(out + half + i, Add(RoundToBf16(Mul(b, c)), RoundToBf16(Mul(a, s))), count);
  });
}

static void RotateNeighbours(const uint16_t* in, const float* cos, const float* sin, int64_t half,
                             uint16_t* out) {
  uint16_t halves[kMaxHeadDim];
  for (int64_t i = 0; i < half; ++i) {
    halves[i] = in[2 * i];
    halves[half + i] = in[2 * i + 1];
  }
  Rotate(halves, cos, sin, half, halves);
  for (int64_t i = 0; i < half; ++i) {
    out[2 * i] = halves[i];
    out[2 * i + 1] = halves[half + i];
  }
}

static void ScaleRow(uint16_t* x, float scale, int64_t n) {
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreBf16(x + i, Mul(LoadBf16(x + i, count), Set(scale)), count);
  });
}

// The rules of numerics/e4m3.h: nearest even, saturating at 448, NaN to 0x7F.
NIBBLE_SIMD I32 EncodeE4M3(F32 x) {
  const I32 bits = Bits(x);
  const I32 magnitude = And(bits, SetInt(0x7FFFFFFF));
  const I32 clamped =
      SelectInt(LessInt(magnitude, SetInt(0x43E00000)), magnitude, SetInt(0x43E00000));  // 448
  // Below 2^-6 adding 2^14 aligns the last mantissa bit with 2^-9: the adder rounds.
  const I32 subnormal = SubInt(Bits(Add(FromBits(clamped), Set(0x1p14f))), SetInt(0x46800000));
  const I32 odd = And(ShiftRight<20>(clamped), SetInt(1));
  const I32 rounded = AddInt(clamped, AddInt(odd, SetInt(0x7FFFF)));
  const I32 normal = ShiftRight<20>(SubInt(rounded, SetInt(0x3C000000)));
  const I32 code = SelectInt(LessInt(clamped, SetInt(0x3C800000)), subnormal, normal);
  const I32 sign = And(ShiftRight<24>(bits), SetInt(0x80));
  return SelectInt(LessInt(SetInt(0x7F800000), magnitude), SetInt(0x7F), Or(code, sign));
}

static void EncodeE4M3Row(const uint16_t* in, float scale, int64_t n, uint8_t* out) {
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreU8(out + i, EncodeE4M3(Div(LoadBf16(in + i, count), Set(scale))), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
