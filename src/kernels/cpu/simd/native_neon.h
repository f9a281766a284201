// Native operations of simd.h: NEON q registers. Include once, before simd.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define NIBBLE_ISA neon
#define NIBBLE_NATIVE static inline __attribute__((always_inline))

namespace nibble::kernels::NIBBLE_ISA {

using NativeF = float32x4_t;
using NativeI = int32x4_t;
using NativeMask = uint32x4_t;
constexpr int kNativeLanes = 4;
constexpr int kCodesAtOnce = 64;   // of NativeE4M3ToF16
constexpr bool kWidensF16 = true;  // by one instruction
constexpr bool kMultipliesPairs = false;

// Tile of the attention kernel, in rows and in vectors: 16 accumulators of 32 registers.
constexpr int kTileRows = 2;
constexpr int kTileBlocks = 2;  // of keys
constexpr int kTilePairs = 1;   // of values, 32 elements each

NIBBLE_NATIVE NativeF NativeSet(float x) { return vdupq_n_f32(x); }
NIBBLE_NATIVE NativeI NativeSetInt(int32_t x) { return vdupq_n_s32(x); }
NIBBLE_NATIVE NativeF NativeAdd(NativeF a, NativeF b) { return vaddq_f32(a, b); }
NIBBLE_NATIVE NativeF NativeSub(NativeF a, NativeF b) { return vsubq_f32(a, b); }
NIBBLE_NATIVE NativeF NativeMul(NativeF a, NativeF b) { return vmulq_f32(a, b); }
NIBBLE_NATIVE NativeF NativeDiv(NativeF a, NativeF b) { return vdivq_f32(a, b); }
NIBBLE_NATIVE NativeF NativeFma(NativeF a, NativeF b, NativeF c) { return vfmaq_f32(c, a, b); }
NIBBLE_NATIVE NativeI NativeAddInt(NativeI a, NativeI b) { return vaddq_s32(a, b); }
NIBBLE_NATIVE NativeI NativeSubInt(NativeI a, NativeI b) { return vsubq_s32(a, b); }
NIBBLE_NATIVE NativeI NativeAnd(NativeI a, NativeI b) { return vandq_s32(a, b); }
NIBBLE_NATIVE NativeI NativeOr(NativeI a, NativeI b) { return vorrq_s32(a, b); }
NIBBLE_NATIVE NativeMask NativeLess(NativeF a, NativeF b) { return vcltq_f32(a, b); }
NIBBLE_NATIVE NativeMask NativeEqual(NativeF a, NativeF b) { return vceqq_f32(a, b); }
NIBBLE_NATIVE NativeMask NativeLessInt(NativeI a, NativeI b) { return vcltq_s32(a, b); }
NIBBLE_NATIVE NativeF NativeSelect(NativeMask m, NativeF yes, NativeF no) {
  return vbslq_f32(m, yes, no);
}
NIBBLE_NATIVE NativeI NativeSelectInt(NativeMask m, NativeI yes, NativeI no) {
  return vbslq_s32(m, yes, no);
}
// As x86 does it: the second operand if either is NaN.
NIBBLE_NATIVE NativeF NativeMax(NativeF a, NativeF b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
NIBBLE_NATIVE NativeF NativeMin(NativeF a, NativeF b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
NIBBLE_NATIVE uint32_t NativeMaskBits(NativeMask m) {
  const uint32x4_t weights = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(m, weights));
}
NIBBLE_NATIVE NativeI NativeBits(NativeF a) { return vreinterpretq_s32_f32(a); }
NIBBLE_NATIVE NativeF NativeFromBits(NativeI a) { return vreinterpretq_f32_s32(a); }
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftLeft(NativeI a) {
  return vshlq_n_s32(a, kShift);
}
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftRight(NativeI a) {
  return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), kShift));
}

NIBBLE_NATIVE NativeF NativeLoadF32(const float* p) { return vld1q_f32(p); }
NIBBLE_NATIVE void NativeStoreF32(float* p, NativeF a) { vst1q_f32(p, a); }
NIBBLE_NATIVE void NativeStoreI32(int32_t* p, NativeI a) { vst1q_s32(p, a); }
NIBBLE_NATIVE NativeI NativeLoadI32(const int32_t* p) { return vld1q_s32(p); }
NIBBLE_NATIVE NativeI NativeLoadU16(const uint16_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)));
}
NIBBLE_NATIVE void NativeStoreU16(uint16_t* p, NativeI a) {
  vst1_u16(p, vmovn_u32(vreinterpretq_u32_s32(a)));
}
NIBBLE_NATIVE void NativeStoreU8(uint8_t* p, NativeI a) {
  const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(a));
  const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
  std::memcpy(p, &bytes, 4);
}
NIBBLE_NATIVE NativeF NativeLoadE4M3(const uint8_t* p) {
  int8x8_t bytes = vdup_n_s8(0);
  std::memcpy(&bytes, p, 4);
  const int16x4_t wide = vget_low_s16(vmovl_s8(bytes));
  const int16x4_t half = vand_s16(vshl_n_s16(wide, 7), vdup_n_s16(static_cast<int16_t>(0xBF80)));
  return vcvt_f32_f16(vreinterpret_f16_s16(half));
}

NIBBLE_NATIVE NativeF NativeLoadF16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

// kCodesAtOnce codes as FP16 of value * 2^-8: the even ones, then the odd ones.
NIBBLE_NATIVE void NativeE4M3ToF16(const uint8_t* codes, uint16_t* out) {
  const int16x8_t mask = vdupq_n_s16(static_cast<int16_t>(0xBF80));
  const auto store = [&](uint16_t* at, int16x8_t upper_bytes) {
    vst1q_u16(at, vreinterpretq_u16_s16(vandq_s16(vshrq_n_s16(upper_bytes, 1), mask)));
  };
  for (int i = 0; i < 4; ++i) {
    const int16x8_t both = vreinterpretq_s16_u8(vld1q_u8(codes + 16 * i));
    store(out + 8 * i, vshlq_n_s16(both, 8));
    store(out + 32 + 8 * i, both);
  }
}

// Eight codes as BF16 of value * 2^-8, two per dword.
NIBBLE_NATIVE NativeI NativeLoadE4M3Pairs(const uint8_t* p) {
  const int16x8_t code = vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(p)));
  const int16x8_t magnitude = vandq_s16(vshlq_n_s16(code, 4), vdupq_n_s16(0x7F0));
  const int16x8_t normal = vaddq_s16(magnitude, vdupq_n_s16(112 << 7));
  const uint16x8_t subnormals = {0, 0x3700, 0x3780, 0x37C0, 0x3800, 0x3820, 0x3840, 0x3860};
  const int16x8_t mantissa = vandq_s16(code, vdupq_n_s16(7));
  const int16x8_t index = vmlaq_n_s16(vdupq_n_s16(0x100), mantissa, 0x202);
  const int16x8_t subnormal = vreinterpretq_s16_u8(
      vqtbl1q_u8(vreinterpretq_u8_u16(subnormals), vreinterpretq_u8_s16(index)));
  const uint16x8_t is_subnormal = vcltq_s16(magnitude, vdupq_n_s16(0x80));
  const int16x8_t bits = vbslq_s16(is_subnormal, subnormal, normal);
  const int16x8_t sign = vandq_s16(code, vdupq_n_s16(static_cast<int16_t>(0x8000)));
  return vreinterpretq_s32_s16(vorrq_s16(bits, sign));
}

NIBBLE_NATIVE float NativeSum(NativeF a) {
  const float32x2_t two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
NIBBLE_NATIVE float NativeLargest(NativeF a) {
  const float32x4_t two = NativeMax(a, vextq_f32(a, a, 2));
  const float first = vgetq_lane_f32(two, 0);
  const float second = vgetq_lane_f32(two, 1);
  return first > second ? first : second;
}

// Lane i: NativeSum(rows[i]).
NIBBLE_NATIVE NativeF NativeSumRows(const NativeF (&rows)[4]) {
  return NativeF{NativeSum(rows[0]), NativeSum(rows[1]), NativeSum(rows[2]), NativeSum(rows[3])};
}

// Transposes a square of kNativeLanes dwords: rows in, columns out.
NIBBLE_NATIVE void NativeTranspose(NativeI rows[4]) {
  const int32x4_t a = vtrn1q_s32(rows[0], rows[1]);
  const int32x4_t b = vtrn2q_s32(rows[0], rows[1]);
  const int32x4_t c = vtrn1q_s32(rows[2], rows[3]);
  const int32x4_t d = vtrn2q_s32(rows[2], rows[3]);
  rows[0] = vcombine_s32(vget_low_s32(a), vget_low_s32(c));
  rows[1] = vcombine_s32(vget_low_s32(b), vget_low_s32(d));
  rows[2] = vcombine_s32(vget_high_s32(a), vget_high_s32(c));
  rows[3] = vcombine_s32(vget_high_s32(b), vget_high_s32(d));
}

}  // namespace nibble::kernels::NIBBLE_ISA
