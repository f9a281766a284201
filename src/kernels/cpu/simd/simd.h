// Sixteen FP32 lanes on every instruction set.
//
// F32 and I32 are one logical vector of 16 lanes, made of kParts native ones (one zmm, two ymm,
// four q or SSE registers). Kernels are written once over them; as every operation, every
// reduction tree and every constant is the same, AVX-512, AVX2 and NEON give the same bits. The
// generic build has no fused multiply-add on x86 and may differ in the last place.
//
// A translation unit of one instruction set includes its native_*.h first (which defines NIBBLE_ISA
// and the native operations), then this file. Everything lives in nibble::kernels::NIBBLE_ISA and
// is always inlined, so that the linker can never pick one unit's copy for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace nibble::kernels::NIBBLE_ISA {

#define NIBBLE_SIMD static inline __attribute__((always_inline))

constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNativeLanes;

struct F32 {
  NativeF part[kParts];
};
struct I32 {
  NativeI part[kParts];
};
struct Mask {
  NativeMask part[kParts];
};

// Count of lanes that a load or store touches: all, or the first n (the others read as zero).
struct Full {};
struct Tail {
  int n;
};

#define NIBBLE_FOR_PARTS for (int i = 0; i < kParts; ++i)

NIBBLE_SIMD F32 Set(float x) {
  F32 r;
  NIBBLE_FOR_PARTS r.part[i] = NativeSet(x);
  return r;
}
NIBBLE_SIMD I32 SetInt(int32_t x) {
  I32 r;
  NIBBLE_FOR_PARTS r.part[i] = NativeSetInt(x);
  return r;
}

#define NIBBLE_BINARY(Type, Name)                                    \
  NIBBLE_SIMD Type Name(Type a, Type b) {                            \
    NIBBLE_FOR_PARTS a.part[i] = Native##Name(a.part[i], b.part[i]); \
    return a;                                                        \
  }
NIBBLE_BINARY(F32, Add)
NIBBLE_BINARY(F32, Sub)
NIBBLE_BINARY(F32, Mul)
NIBBLE_BINARY(F32, Div)
NIBBLE_BINARY(F32, Max)
NIBBLE_BINARY(F32, Min)
NIBBLE_BINARY(I32, AddInt)
NIBBLE_BINARY(I32, SubInt)
NIBBLE_BINARY(I32, And)
NIBBLE_BINARY(I32, Or)
#undef NIBBLE_BINARY

// a * b + c, rounded once where the processor can.
NIBBLE_SIMD F32 Fma(F32 a, F32 b, F32 c) {
  NIBBLE_FOR_PARTS c.part[i] = NativeFma(a.part[i], b.part[i], c.part[i]);
  return c;
}
NIBBLE_SIMD Mask Less(F32 a, F32 b) {  // false if either is NaN
  Mask r;
  NIBBLE_FOR_PARTS r.part[i] = NativeLess(a.part[i], b.part[i]);
  return r;
}
NIBBLE_SIMD Mask Equal(F32 a, F32 b) {  // false if either is NaN
  Mask r;
  NIBBLE_FOR_PARTS r.part[i] = NativeEqual(a.part[i], b.part[i]);
  return r;
}
NIBBLE_SIMD Mask LessInt(I32 a, I32 b) {
  Mask r;
  NIBBLE_FOR_PARTS r.part[i] = NativeLessInt(a.part[i], b.part[i]);
  return r;
}
NIBBLE_SIMD F32 Select(Mask mask, F32 yes, F32 no) {
  NIBBLE_FOR_PARTS no.part[i] = NativeSelect(mask.part[i], yes.part[i], no.part[i]);
  return no;
}
NIBBLE_SIMD I32 SelectInt(Mask mask, I32 yes, I32 no) {
  NIBBLE_FOR_PARTS no.part[i] = NativeSelectInt(mask.part[i], yes.part[i], no.part[i]);
  return no;
}
NIBBLE_SIMD uint32_t MaskBits(Mask mask) {  // bit i: lane i
  uint32_t bits = 0;
  NIBBLE_FOR_PARTS bits |= NativeMaskBits(mask.part[i]) << (i * kNativeLanes);
  return bits;
}
NIBBLE_SIMD I32 Bits(F32 a) {
  I32 r;
  NIBBLE_FOR_PARTS r.part[i] = NativeBits(a.part[i]);
  return r;
}
NIBBLE_SIMD F32 FromBits(I32 a) {
  F32 r;
  NIBBLE_FOR_PARTS r.part[i] = NativeFromBits(a.part[i]);
  return r;
}
template <int kShift>
NIBBLE_SIMD I32 ShiftLeft(I32 a) {
  NIBBLE_FOR_PARTS a.part[i] = NativeShiftLeft<kShift>(a.part[i]);
  return a;
}
template <int kShift>
NIBBLE_SIMD I32 ShiftRight(I32 a) {  // logical
  NIBBLE_FOR_PARTS a.part[i] = NativeShiftRight<kShift>(a.part[i]);
  return a;
}

// ---- Memory ----

#define NIBBLE_MEMORY(Type, Name, Element)                                 \
  NIBBLE_SIMD Type Load##Name(const Element* p, Full = {}) {               \
    Type r;                                                                \
    NIBBLE_FOR_PARTS r.part[i] = NativeLoad##Name(p + i * kNativeLanes);   \
    return r;                                                              \
  }                                                                        \
  NIBBLE_SIMD Type Load##Name(const Element* p, Tail tail) {               \
    Element buffer[kLanes] = {};                                           \
    std::memcpy(buffer, p, static_cast<size_t>(tail.n) * sizeof(Element)); \
    return Load##Name(buffer);                                             \
  }
#define NIBBLE_MEMORY_STORE(Type, Name, Element)                           \
  NIBBLE_SIMD void Store##Name(Element* p, Type a, Full = {}) {            \
    NIBBLE_FOR_PARTS NativeStore##Name(p + i * kNativeLanes, a.part[i]);   \
  }                                                                        \
  NIBBLE_SIMD void Store##Name(Element* p, Type a, Tail tail) {            \
    Element buffer[kLanes];                                                \
    Store##Name(buffer, a);                                                \
    std::memcpy(p, buffer, static_cast<size_t>(tail.n) * sizeof(Element)); \
  }
NIBBLE_MEMORY(F32, F32, float)
NIBBLE_MEMORY_STORE(F32, F32, float)
NIBBLE_MEMORY(I32, I32, int32_t)
NIBBLE_MEMORY_STORE(I32, I32, int32_t)
NIBBLE_MEMORY(I32, U16, uint16_t)  // zero-extended
NIBBLE_MEMORY_STORE(I32, U16, uint16_t)
NIBBLE_MEMORY_STORE(I32, U8, uint8_t)
NIBBLE_MEMORY(F32, E4M3, uint8_t)  // value * 2^-8: what a shift into FP16 gives, exactly
NIBBLE_MEMORY(F32, F16, uint16_t)
#undef NIBBLE_MEMORY
#undef NIBBLE_MEMORY_STORE

// body(offset, Full or Tail) over n elements.
template <typename Body>
NIBBLE_SIMD void ForEachVector(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Full{});
  if (i < n) body(i, Tail{static_cast<int>(n - i)});
}

NIBBLE_SIMD I32 Iota() {
  alignas(64) static constexpr int32_t kIota[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
  return LoadI32(kIota);
}

// ---- Reductions: lanes i and i+8, then i+4, i+2, i+1 ----

NIBBLE_SIMD float Sum(F32 a) {
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.part[i] = NativeAdd(a.part[i], a.part[i + half]);
  return NativeSum(a.part[0]);
}
// Lane i: Sum(rows[i]), with fewer shuffles.
NIBBLE_SIMD F32 SumRows(const F32 (&rows)[kLanes]) {
  F32 sums;
  for (int p = 0; p < kParts; ++p) {
    NativeF folded[kNativeLanes];
    for (int r = 0; r < kNativeLanes; ++r) {
      F32 row = rows[p * kNativeLanes + r];
      for (int half = kParts / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) row.part[i] = NativeAdd(row.part[i], row.part[i + half]);
      folded[r] = row.part[0];
    }
    sums.part[p] = NativeSumRows(folded);
  }
  return sums;
}
NIBBLE_SIMD float FirstLane(F32 a) {
  float lanes[kLanes];
  StoreF32(lanes, a);
  return lanes[0];
}
NIBBLE_SIMD float Largest(F32 a) {
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.part[i] = NativeMax(a.part[i], a.part[i + half]);
  return NativeLargest(a.part[0]);
}

#undef NIBBLE_FOR_PARTS

// ---- BF16 ----

NIBBLE_SIMD F32 WidenBf16(I32 bits) { return FromBits(ShiftLeft<16>(bits)); }

// The bits of a rounded to BF16, nearest even, in the upper half of each lane; NaN stays NaN.
NIBBLE_SIMD I32 RoundedBf16Bits(F32 a) {
  const I32 bits = Bits(a);
  const I32 odd = And(ShiftRight<16>(bits), SetInt(1));
  const I32 rounded = AddInt(bits, AddInt(odd, SetInt(0x7FFF)));
  const I32 quiet = Or(bits, SetInt(0x400000));
  return And(SelectInt(Equal(a, a), rounded, quiet), SetInt(static_cast<int32_t>(0xFFFF0000u)));
}
NIBBLE_SIMD F32 RoundToBf16(F32 a) { return FromBits(RoundedBf16Bits(a)); }

template <typename Count = Full>
NIBBLE_SIMD F32 LoadBf16(const uint16_t* p, Count count = {}) {
  return WidenBf16(LoadU16(p, count));
}
template <typename Count = Full>
NIBBLE_SIMD void StoreBf16(uint16_t* p, F32 a, Count count = {}) {
  StoreU16(p, ShiftRight<16>(RoundedBf16Bits(a)), count);
}
// even[i] and odd[i] rounded, side by side: 32 elements.
NIBBLE_SIMD void StoreBf16Pairs(uint16_t* p, F32 even, F32 odd) {
  StoreI32(reinterpret_cast<int32_t*>(p),
           Or(ShiftRight<16>(RoundedBf16Bits(even)), RoundedBf16Bits(odd)));
}

// ---- exp ----

// e^x for x <= 0, within 2 units in the last place; 0 below -86.6 (and for -inf). NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial fitted for this project (relative error
// 4e-9); ln 2 in two parts, of which the first times n is exact.
NIBBLE_SIMD F32 ExpOfNonPositive(F32 x) {
  const F32 magic = Set(0x1.8p23f);  // adding it rounds to an integer, held in the low bits
  const Mask tiny = Less(x, Set(-86.6f));
  const F32 clamped = Select(tiny, Set(0.0f), x);
  const F32 shifted = Fma(clamped, Set(0x1.715476p+0f), magic);
  const F32 n = Sub(shifted, magic);
  F32 r = Fma(n, Set(-0.693359375f), clamped);
  r = Fma(n, Set(2.12194440e-4f), r);
  F32 g = Set(0x1.6a2434p-10f);
  g = Fma(g, r, Set(0x1.1239e2p-7f));
  g = Fma(g, r, Set(0x1.5558f2p-5f));
  g = Fma(g, r, Set(0x1.555492p-3f));
  g = Fma(g, r, Set(0x1.fffffcp-2f));
  const F32 e = Add(Fma(Mul(r, r), g, r), Set(1.0f));
  const F32 scaled = FromBits(AddInt(Bits(e), ShiftLeft<23>(Bits(shifted))));
  return Select(tiny, Set(0.0f), scaled);
}

}  // namespace nibble::kernels::NIBBLE_ISA
