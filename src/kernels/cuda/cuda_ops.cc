// The OpTable of the CUDA backend.
#include "kernels/ops.h"

namespace nibble::kernels {

Result<const OpTable*> CudaOps(int index) {
  NIBBLE_ASSIGN(Device * device, CudaDevice(index));
  static OpTable table = {.device = device, .backend = "cuda", .variant = "cuda"};
  return &table;
}

}  // namespace nibble::kernels
