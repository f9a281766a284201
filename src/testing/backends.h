// The backends that whole models are tested on: this processor's kernels, and a GPU's where there
// is one.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace nibble::testing {

struct Backend {
  const kernels::OpTable* ops;
  std::string suffix;  // of test names: "" for the CPU
};

inline std::vector<Backend> TestedBackends() {
  std::vector<Backend> backends = {{&kernels::CpuOps(), ""}};
  if (const auto cuda = kernels::CudaOps()) backends.push_back({*cuda, "_cuda"});
  return backends;
}

}  // namespace nibble::testing
