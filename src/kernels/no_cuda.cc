#include "kernels/benchmark_ops.h"
#include "kernels/ops.h"
#include "kernels/w4a4_ops.h"

#if !NIBBLE_CUDA

namespace nibble::kernels {

Result<const OpTable*> CudaOps(int index) {
  const auto device = CudaDevice(index);
  return tl::unexpected(device.error());
}

Result<const OpTable*> CudaOpsWithW4a4() { return CudaOps(0); }

double CudaReadSeconds(int64_t) { return 0; }

double CudaBf16MatmulSeconds(int64_t, int64_t, int64_t) { return 0; }

}  // namespace nibble::kernels

#endif
