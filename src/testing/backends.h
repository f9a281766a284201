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

// This processor's kernels of other instruction sets than the chosen one.
inline std::vector<Backend> OtherCpuBackends() {
  std::vector<Backend> backends;
  for (const kernels::OpTable* ops : kernels::CpuOpsVariants())
    if (ops != &kernels::CpuOps()) backends.push_back({ops, "_" + std::string(ops->variant)});
  return backends;
}

}  // namespace nibble::testing
