// The OpTable of the CUDA backend.
#include "kernels/cuda/read_bandwidth/read_bandwidth.h"
#include "kernels/ops.h"

namespace nibble::kernels {

Result<const OpTable*> CudaOps(int index) {
  NIBBLE_ASSIGN(Device * device, CudaDevice(index));
  static OpTable table = {
      .backend = "cuda",
      .variant = "cuda",
      .read_bandwidth = cuda::ReadBandwidth,
  };
  table.device = device;
  return &table;
}

}  // namespace nibble::kernels
