// Native operations of simd.h in plain C++ with the compiler's vector types: runs on every
// processor, with the instructions that every processor of the target has. Include once, before
// simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#define NIBBLE_ISA generic
#define NIBBLE_NATIVE static inline __attribute__((always_inline))

namespace nibble::kernels::NIBBLE_ISA {

using NativeF = float __attribute__((vector_size(16)));
using NativeI = int32_t __attribute__((vector_size(16)));
using NativeU = uint32_t __attribute__((vector_size(16)));
using NativeMask = NativeI;
constexpr int kNativeLanes = 4;
constexpr int kCodesAtOnce = 64;    // of NativeE4M3ToF16
constexpr bool kWidensF16 = false;  // by one instruction
constexpr bool kMultipliesPairs = false;

// Tile of the attention kernel, in rows and in vectors: 8 accumulators of 16 registers.
constexpr int kTileRows = 2;
constexpr int kTileBlocks = 2;  // of keys
constexpr int kTilePairs = 1;   // of values, 32 elements each

NIBBLE_NATIVE NativeF NativeSet(float x) { return NativeF{x, x, x, x}; }
NIBBLE_NATIVE NativeI NativeSetInt(int32_t x) { return NativeI{x, x, x, x}; }
NIBBLE_NATIVE NativeF NativeAdd(NativeF a, NativeF b) { return a + b; }
NIBBLE_NATIVE NativeF NativeSub(NativeF a, NativeF b) { return a - b; }
NIBBLE_NATIVE NativeF NativeMul(NativeF a, NativeF b) { return a * b; }
NIBBLE_NATIVE NativeF NativeDiv(NativeF a, NativeF b) { return a / b; }
NIBBLE_NATIVE NativeF NativeFma(NativeF a, NativeF b, NativeF c) {
#ifdef __FP_FAST_FMAF
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
NIBBLE_NATIVE NativeI NativeAddInt(NativeI a, NativeI b) {
  return reinterpret_cast<NativeI>(reinterpret_cast<NativeU>(a) + reinterpret_cast<NativeU>(b));
}
NIBBLE_NATIVE NativeI NativeSubInt(NativeI a, NativeI b) {
  return reinterpret_cast<NativeI>(reinterpret_cast<NativeU>(a) - reinterpret_cast<NativeU>(b));
}
NIBBLE_NATIVE NativeI NativeAnd(NativeI a, NativeI b) { return a & b; }
NIBBLE_NATIVE NativeI NativeOr(NativeI a, NativeI b) { return a | b; }
NIBBLE_NATIVE NativeMask NativeLess(NativeF a, NativeF b) { return a < b; }
NIBBLE_NATIVE NativeMask NativeEqual(NativeF a, NativeF b) { return a == b; }
NIBBLE_NATIVE NativeMask NativeLessInt(NativeI a, NativeI b) { return a < b; }
NIBBLE_NATIVE NativeF NativeSelect(NativeMask m, NativeF yes, NativeF no) { return m ? yes : no; }
NIBBLE_NATIVE NativeI NativeSelectInt(NativeMask m, NativeI yes, NativeI no) {
  return m ? yes : no;
}
// As x86 does it: the second operand if either is NaN.
NIBBLE_NATIVE NativeF NativeMax(NativeF a, NativeF b) { return a > b ? a : b; }
NIBBLE_NATIVE NativeF NativeMin(NativeF a, NativeF b) { return a < b ? a : b; }
NIBBLE_NATIVE uint32_t NativeMaskBits(NativeMask m) {
  const NativeI bits = m & NativeI{1, 2, 4, 8};
  return static_cast<uint32_t>(bits[0] | bits[1] | bits[2] | bits[3]);
}
NIBBLE_NATIVE NativeI NativeBits(NativeF a) { return reinterpret_cast<NativeI>(a); }
NIBBLE_NATIVE NativeF NativeFromBits(NativeI a) { return reinterpret_cast<NativeF>(a); }
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftLeft(NativeI a) {
  return reinterpret_cast<NativeI>(reinterpret_cast<NativeU>(a) << kShift);
}
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftRight(NativeI a) {
  return reinterpret_cast<NativeI>(reinterpret_cast<NativeU>(a) >> kShift);
}

NIBBLE_NATIVE NativeF NativeLoadF32(const float* p) {
  NativeF r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
NIBBLE_NATIVE void NativeStoreF32(float* p, NativeF a) { std::memcpy(p, &a, sizeof(a)); }
NIBBLE_NATIVE void NativeStoreI32(int32_t* p, NativeI a) { std::memcpy(p, &a, sizeof(a)); }
NIBBLE_NATIVE NativeI NativeLoadI32(const int32_t* p) {
  NativeI r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
NIBBLE_NATIVE NativeI NativeLoadU16(const uint16_t* p) { return NativeI{p[0], p[1], p[2], p[3]}; }
NIBBLE_NATIVE void NativeStoreU16(uint16_t* p, NativeI a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint16_t>(a[i]);
}
NIBBLE_NATIVE void NativeStoreU8(uint8_t* p, NativeI a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(a[i]);
}
NIBBLE_NATIVE NativeF DecodeE4M3(NativeI code) {
  const NativeI magnitude = code & 0x7F;
  // Exponent bias 7 to 127, and the 2^-8 of LoadE4M3; subnormals count units of 2^-9.
  const NativeI normal = (magnitude << 20) + (112 << 23);
  const NativeF subnormal = __builtin_convertvector(magnitude, NativeF) * 0x1p-17f;
  const NativeI bits = magnitude < 8 ? reinterpret_cast<NativeI>(subnormal) : normal;
  return NativeFromBits(bits | NativeShiftLeft<24>(code & 0x80));
}
NIBBLE_NATIVE NativeF NativeLoadE4M3(const uint8_t* p) {
  return DecodeE4M3(NativeI{p[0], p[1], p[2], p[3]});
}
NIBBLE_NATIVE NativeF NativeLoadF16(const uint16_t* p) {
  const NativeI half = NativeLoadU16(p);
  const NativeI magnitude = half & 0x7FFF;
  const NativeI normal = (magnitude << 13) + (112 << 23);
  const NativeF subnormal = __builtin_convertvector(magnitude, NativeF) * 0x1p-24f;
  const NativeI bits = magnitude < 0x400 ? reinterpret_cast<NativeI>(subnormal) : normal;
  return NativeFromBits(bits | NativeShiftLeft<16>(half & 0x8000));
}

// kCodesAtOnce codes as FP16 of value * 2^-8: the even ones, then the odd ones.
NIBBLE_NATIVE void NativeE4M3ToF16(const uint8_t* codes, uint16_t* out) {
  for (int i = 0; i < kCodesAtOnce; ++i) {
    const int code = codes[i];
    out[i % 2 * 32 + i / 2] = static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7F) << 7);
  }
}

// Eight codes as BF16 of value * 2^-8, two per dword.
NIBBLE_NATIVE NativeI NativeLoadE4M3Pairs(const uint8_t* p) {
  const NativeI even = NativeBits(DecodeE4M3(NativeI{p[0], p[2], p[4], p[6]}));
  const NativeI odd = NativeBits(DecodeE4M3(NativeI{p[1], p[3], p[5], p[7]}));
  return NativeShiftRight<16>(even) | odd;
}

NIBBLE_NATIVE float NativeSum(NativeF a) { return (a[0] + a[2]) + (a[1] + a[3]); }
NIBBLE_NATIVE float NativeLargest(NativeF a) {
  const float even = a[0] > a[2] ? a[0] : a[2];
  const float odd = a[1] > a[3] ? a[1] : a[3];
  return even > odd ? even : odd;
}

// Lane i: NativeSum(rows[i]).
NIBBLE_NATIVE NativeF NativeSumRows(const NativeF (&rows)[4]) {
  return NativeF{NativeSum(rows[0]), NativeSum(rows[1]), NativeSum(rows[2]), NativeSum(rows[3])};
}

// Transposes a square of kNativeLanes dwords: rows in, columns out.
NIBBLE_NATIVE void NativeTranspose(NativeI rows[4]) {
  NativeI columns[4];
  for (int c = 0; c < 4; ++c) columns[c] = NativeI{rows[0][c], rows[1][c], rows[2][c], rows[3][c]};
  for (int c = 0; c < 4; ++c) rows[c] = columns[c];
}

}  // namespace nibble::kernels::NIBBLE_ISA
