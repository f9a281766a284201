// Eight neighbouring BF16 of a row in four registers: how the elementwise kernels see their rows.
//
// A row whose length is a multiple of eight and whose arrays are 16-byte aligned moves as vectors;
// others move element by element, but to the same threads, so that sums do not differ.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/convert.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kVector = 8;

// Whether vectors of all the rows may be used: `stride` in elements, pointers to the first row.
template <typename... Pointers>
bool VectorsAligned(int64_t stride, const Pointers*... pointers) {
  return stride % kVector == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// `count` (any number) elements lie from p on; places beyond are 0.
__device__ __forceinline__ uint4 LoadBf16x8(const uint16_t* p, int64_t count, bool aligned) {
  if (aligned) return count > 0 ? *reinterpret_cast<const uint4*>(p) : uint4{};
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (i < count) words[i / 2] |= static_cast<uint32_t>(p[i]) << (16 * (i % 2));
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void StoreBf16x8(uint16_t* p, uint4 vector, int64_t count,
                                            bool aligned) {
  if (aligned) {
    if (count > 0) *reinterpret_cast<uint4*>(p) = vector;
    return;
  }
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (i < count) p[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
}

__device__ __forceinline__ void LoadF32x8(const float* p, int64_t count, bool aligned,
                                          float (&values)[kVector]) {
  if (aligned && count > 0) {
    const float4 low = reinterpret_cast<const float4*>(p)[0];
    const float4 high = reinterpret_cast<const float4*>(p)[1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = i < count ? p[i] : 0.0f;
}

__device__ __forceinline__ void Unpack(uint4 vector, float (&values)[kVector]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = ptx::FirstBf16(words[i]);
    values[2 * i + 1] = ptx::SecondBf16(words[i]);
  }
}

__device__ __forceinline__ uint4 Pack(const float (&values)[kVector]) {
  return {ptx::PackBf16(values[0], values[1]), ptx::PackBf16(values[2], values[3]),
          ptx::PackBf16(values[4], values[5]), ptx::PackBf16(values[6], values[7])};
}

// a + b, rounded.
__device__ __forceinline__ uint4 AddBf16x8(uint4 a, uint4 b) {
  float x[kVector], y[kVector];
  Unpack(a, x);
  Unpack(b, y);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] += y[i];
  return Pack(x);
}

}  // namespace nibble::kernels::cuda
