#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Fp8Kernel(int token_tiles, int stages, bool heads) {
  return KernelOf<TileFormat::kFp8>(token_tiles, stages, heads);
}

}  // namespace nibble::kernels::cuda::decode
