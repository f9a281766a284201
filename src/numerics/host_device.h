// NIBBLE_HD marks pure functions that both the host and a GPU compile.
#pragma once

#ifdef __CUDACC__
#define NIBBLE_HD __host__ __device__
#else
#define NIBBLE_HD
#endif
