// What a kernel that only reads reaches: the ceiling beside which every figure is printed.
#pragma once

namespace nibble::kernels::cuda {

// Bytes per second over memory much larger than the L2 cache; 0 if there is too little of it.
double ReadBandwidth();

}  // namespace nibble::kernels::cuda
