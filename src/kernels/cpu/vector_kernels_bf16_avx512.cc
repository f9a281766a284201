#include "kernels/cpu/simd/native_avx512bf16.h"  // first: names the instruction set
#include "kernels/cpu/vector_kernels_table.h"
