// The CUDA table for tests that hand host memory to ops and look at the result at once: every entry
// waits for the device. Works because kernels_tests allocates everything as pinned memory, which
// the GPU reads and writes in place (pinned_memory_test.cc).
#pragma once

#include <gtest/gtest.h>

#include "kernels/ops.h"

namespace nibble::kernels::cuda {

// Null without a GPU.
inline const OpTable* SyncedOps();

namespace synced {

inline const OpTable* Table() {
  static const OpTable* const table = [] {
    const auto ops = CudaOps();
    return ops ? *ops : nullptr;
  }();
  return table;
}

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void Run(const OpContext& context, const Params& params) {
  OpContext on_device = context;
  on_device.stream = Table()->device->stream();
  (Table()->*kEntry)(on_device, params);
  Table()->device->Synchronize();
  ASSERT_EQ(Table()->device->failure(), "");
}

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void Wrap(OpTable* table) {
  if (table->*kEntry != nullptr) table->*kEntry = Run<Params, kEntry>;
}

}  // namespace synced

inline const OpTable* SyncedOps() {
  using namespace synced;
  static const OpTable table = [] {
    if (Table() == nullptr) return OpTable{};
    OpTable t = *Table();
    t.variant = "cuda";  // names the tests, the same on every GPU
    Wrap<LinearParams, &OpTable::linear>(&t);
    Wrap<LinearPairParams, &OpTable::linear_pair>(&t);
    Wrap<LinearParams, &OpTable::linear_w4a4>(&t);
    Wrap<LinearParams, &OpTable::linear_fp8>(&t);
    Wrap<EmbedParams, &OpTable::embed>(&t);
    Wrap<RmsNormParams, &OpTable::rms_norm>(&t);
    Wrap<AddParams, &OpTable::add>(&t);
    Wrap<RoundParams, &OpTable::round>(&t);
    Wrap<GatherRowsParams, &OpTable::gather_rows>(&t);
    Wrap<ActivationParams, &OpTable::activation>(&t);
    Wrap<SigmoidGateParams, &OpTable::sigmoid_gate>(&t);
    Wrap<MoeParams, &OpTable::moe>(&t);
    Wrap<HeadLinearParams, &OpTable::head_linear>(&t);
    Wrap<RopeAndCacheParams, &OpTable::rope_and_cache>(&t);
    Wrap<MlaRopeAndCacheParams, &OpTable::mla_rope_and_cache>(&t);
    Wrap<AttentionParams, &OpTable::attention>(&t);
    Wrap<GatedDeltaNetParams, &OpTable::gated_delta_net>(&t);
    Wrap<Mamba2Params, &OpTable::mamba2>(&t);
    Wrap<SampleParams, &OpTable::sample>(&t);
    return t;
  }();
  return Table() == nullptr ? nullptr : &table;
}

}  // namespace nibble::kernels::cuda
