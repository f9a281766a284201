#include "kernels/ops.h"

#if !NIBBLE_CUDA

namespace nibble::kernels {

Result<const OpTable*> CudaOps(int index) {
  const auto device = CudaDevice(index);
  return tl::unexpected(device.error());
}

}  // namespace nibble::kernels

#endif
