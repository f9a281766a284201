#include "device/device.h"

#if !NIBBLE_CUDA

namespace nibble {

Result<Device*> CudaDevice(int) {
  return Fail(Code::kUnsupported, "CUDA is not used: this binary was built without it (CUDA=1)");
}

}  // namespace nibble

#endif
