#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Mxfp4Kernel(int token_tiles, int stages, bool heads) {
  return KernelOf<TileFormat::kMxfp4>(token_tiles, stages, heads);
}

}  // namespace nibble::kernels::cuda::decode
