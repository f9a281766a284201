// The host side of CUDA's own number formats, by the names of kNumberFormats. Needs the toolkit's
// headers, no GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <string_view>

namespace nibble {

using EncodeFunction = uint16_t (*)(float);
using DecodeFunction = float (*)(uint16_t);

inline EncodeFunction CudaEncoder(std::string_view format) {
  if (format == "e2m1")
    return
        [](float x) -> uint16_t { return __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest); };
  if (format == "e4m3")
    return [](float x) -> uint16_t { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); };
  if (format == "e4m3_nosat")
    return [](float x) -> uint16_t { return __nv_cvt_float_to_fp8(x, __NV_NOSAT, __NV_E4M3); };
  if (format == "e8m0")
    return [](float x) -> uint16_t {
      return __nv_cvt_float_to_e8m0(x, __NV_SATFINITE, cudaRoundZero);
    };
  if (format == "bf16")
    return [](float x) -> uint16_t { return __nv_bfloat16_raw(__float2bfloat16_rn(x)).x; };
  return [](float x) -> uint16_t { return __half_raw(__float2half_rn(x)).x; };
}

inline DecodeFunction CudaDecoder(std::string_view format) {
  if (format == "e2m1")
    return [](uint16_t code) {
      return __half2float(
          __nv_cvt_fp4_to_halfraw(static_cast<__nv_fp4_storage_t>(code), __NV_E2M1));
    };
  if (format == "e8m0")
    return [](uint16_t code) {
      return __bfloat162float(__nv_cvt_e8m0_to_bf16raw(static_cast<__nv_fp8_storage_t>(code)));
    };
  if (format == "bf16")
    return [](uint16_t code) { return __bfloat162float(__nv_bfloat16_raw{code}); };
  if (format == "f16") return [](uint16_t code) { return __half2float(__half_raw{code}); };
  return [](uint16_t code) {
    return __half2float(__nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E4M3));
  };
}

}  // namespace nibble
