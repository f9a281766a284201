// 4-bit codes times int8 and int16 activations, many tokens, by the tile registers of AMX (Intel,
// from Sapphire Rapids on). int16 is two digits of 8 bits. The rest of the table is AVX-512's.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace amx {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/pairs_avx512.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/batch_kinds_avx512.inc"
//
#include "kernels/cpu/linear/amx_loops.inc"

// As instructions: the compiler's intrinsics are macros that want a register's number as a literal.
struct TileRegisters {
  static void Configure(const TileConfig& config) { _tile_loadconfig(&config); }
  static void Release() { _tile_release(); }
  template <int kTile>
  static NIBBLE_INLINE void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static NIBBLE_INLINE void Load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static NIBBLE_INLINE void Store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kA, int kB>
  static NIBBLE_INLINE void MultiplyAdd() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace amx

const LinearKernels& AmxLinear() {
  static const LinearKernels kernels = WithTiles(amx::TileRuns<amx::TileRegisters>());
  return kernels;
}

}  // namespace nibble::kernels::cpu
