#include "kernels/cpu/simd/native_neon.h"  // first: names the instruction set
#include "kernels/cpu/vector_kernels_table.h"
