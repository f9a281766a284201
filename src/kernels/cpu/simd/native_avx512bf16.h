// Native operations of simd.h: native_avx512.h's, with products of pairs of BF16 by vdpbf16ps.
// Include once, before simd.h.
#pragma once

#define NIBBLE_ISA avx512bf16
#define NIBBLE_MULTIPLIES_PAIRS true
#include "kernels/cpu/simd/native_avx512.h"
