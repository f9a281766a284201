// What the current GPU can do, as cuda_routes.h asks it. Included by .cu files alone.
#pragma once

#include "kernels/cuda/device_facts.h"
#include "kernels/cuda_routes.h"

namespace nibble::kernels::cuda {

inline ComputeCapability CurrentCapability() {
  return {CurrentDevice().major, CurrentDevice().minor};
}

}  // namespace nibble::kernels::cuda
