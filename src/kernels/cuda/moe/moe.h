// The mixture of experts: router, choice, experts, weighted sum. Contract: kernels/ops.h.
#pragma once

#include <memory>
#include <span>

#include "base/error.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// On the current GPU, whose PackedWeights `experts` hold.
Result<std::unique_ptr<PreparedWeights>> PrepareExperts(std::span<const ExpertWeights> experts);

size_t MoeWorkspace(int threads, const MoeSizes& sizes);

// A token's bits depend on nothing but its own inputs. With a listener, waits for the device.
void Moe(const OpContext& context, const MoeParams& params);

// For benchmarks: some launches of the chain, over what an earlier call left in the workspace.
struct MoePhases {
  bool router = true;
  bool route = true;
  bool gate_up = true;
  bool down = true;
};
void RunMoePhases(const OpContext& context, const MoeParams& params, const MoePhases& phases);

}  // namespace nibble::kernels::cuda
