// The contract between models and backends: one Params struct (op_params.h) and one entry of
// OpTable per op.
//
// Ops are coarse (a whole linear, a whole attention step), so that a backend may fuse inside them.
// ref/ holds the obvious scalar version of each, the oracle of parity_test.cc. All activations are
// BF16 (uint16_t bits) unless said otherwise; strides are in elements; the last dimension is
// contiguous.
//
// Exactness: the result for a token depends on that token's inputs alone, never on the other rows
// of the batch, on the number of rows, on the page size or on the number of threads. Every backend
// fixes its summation orders accordingly.
//
// Sizes: T tokens, B sequences, D hidden, F ffn, Hq/Hk query/kv heads, Dh head dim, V vocabulary,
// M,N,K of a GEMM. Ops never fail: whatever can be wrong is checked when the model loads. Params
// point at memory of the caller on the backend's device; spans and PackedWeights are the host's and
// read before the op returns, results of sample are in memory that both see
// (Device::AllocateShared).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "device/device.h"
#include "kernels/linear_pair.h"
#include "kernels/op_params.h"

namespace nibble::kernels {

// A backend fills what it has. Models name the ops they need; a missing one is an error when the
// model loads.
struct OpTable {
  Device* device = nullptr;  // where Params' arrays lie; never null
  std::string_view backend;  // "ref", "cpu", "cuda"
  std::string_view
      variant;  // "avx512", "avx2", "neon", "generic": which kernels were chosen, for `doctor`

  bool recordable = true;  // launches may be recorded and replayed (Device::Record)

  // kDeltaChunk where gated_delta_net gains from DeltaChunks; 1: it takes all tokens one by one,
  // and callers need not care how prompts are cut.
  int32_t delta_chunk = 1;

  // Largest Dh of attention's caches here, in any format; at most kMaxHeadDim.
  int32_t max_head_dim = kMaxHeadDim;

  // Measured, in bytes per second: what decoding cannot outrun. Null: of the host's memory
  // (MeasureReadBandwidth).
  double (*read_bandwidth)() = nullptr;

  Result<std::unique_ptr<PackedWeight>> (*pack_weight)(const PackParams&) = nullptr;
  bool packs_made_up = false;  // pack_weight takes QuantView.made_up
  size_t (*linear_workspace)(int64_t max_m, int64_t max_k) = nullptr;
  void (*linear)(const OpContext&, const LinearParams&) = nullptr;
  // How linear reads m tokens of x best: LinearParams.x_layout is this or rows, and so is the
  // layout in which a linear with an activation or an attention may be asked to write x. Null: rows
  // alone.
  ActivationLayout (*x_layout)(const PackedWeight& weight, int64_t m) = nullptr;
  // What two calls of linear give. Null where one launch of both gains nothing.
  void (*linear_pair)(const OpContext&, const LinearPairParams&) = nullptr;
  // What a linear with an activation of F outputs needs beside linear_workspace, or that of
  // linear_w4a4 or linear_fp8.
  size_t (*activated_workspace)(int64_t max_m, int64_t f) = nullptr;
  // The same with x in NVFP4, too: quantised by the rule of numerics/nvfp4.h after column order and
  // multiplier, with the weight's input_scale. For tokens of prompts. Null where the device does
  // not multiply FP4; takes NVFP4 weights with input_scale() > 0.
  size_t (*linear_w4a4_workspace)(int64_t max_m, int64_t max_k) = nullptr;
  void (*linear_w4a4)(const OpContext&, const LinearParams&) = nullptr;
  // The same with x in E4M3, as the weight's fp8() says (numerics/fp8_activations.h). Null where
  // the device does not multiply FP8; takes weights with fp8().group > 0. Faster than linear for
  // many tokens, and less exact: models use linear unless asked (PromptForms.fp8). Then a token's
  // role in its request decides which of the two multiplies it (prompt or generated, as for
  // linear_w4a4), never the number of tokens in a step: bits would depend on the batch.
  size_t (*linear_fp8_workspace)(int64_t max_m, int64_t max_k) = nullptr;
  void (*linear_fp8)(const OpContext&, const LinearParams&) = nullptr;
  void (*embed)(const OpContext&, const EmbedParams&) = nullptr;
  void (*rms_norm)(const OpContext&, const RmsNormParams&) = nullptr;
  void (*add)(const OpContext&, const AddParams&) = nullptr;
  void (*round)(const OpContext&, const RoundParams&) = nullptr;
  void (*gather_rows)(const OpContext&, const GatherRowsParams&) = nullptr;
  void (*activation)(const OpContext&, const ActivationParams&) = nullptr;
  void (*sigmoid_gate)(const OpContext&, const SigmoidGateParams&) = nullptr;
  // Null where the backend needs no tables of its own.
  Result<std::unique_ptr<PreparedWeights>> (*prepare_experts)(
      std::span<const ExpertWeights> experts) = nullptr;
  Result<std::unique_ptr<PreparedWeights>> (*prepare_heads)(
      std::span<const PackedWeight* const> weights) = nullptr;
  bool moe_w4a4 = false;  // moe takes MoeParams.w4a4: where linear_w4a4 is there
  size_t (*moe_workspace)(int threads, const MoeSizes&) = nullptr;
  void (*moe)(const OpContext&, const MoeParams&) = nullptr;
  size_t (*head_linear_workspace)(int threads, int64_t max_t, int64_t k) = nullptr;
  void (*head_linear)(const OpContext&, const HeadLinearParams&) = nullptr;
  void (*rope_and_cache)(const OpContext&, const RopeAndCacheParams&) = nullptr;
  void (*mla_rope_and_cache)(const OpContext&, const MlaRopeAndCacheParams&) = nullptr;
  size_t (*attention_workspace)(int threads, int64_t max_t, int32_t q_heads,
                                int32_t head_dim) = nullptr;
  void (*attention)(const OpContext&, const AttentionParams&) = nullptr;
  size_t (*gated_delta_net_workspace)(int threads, const GatedDeltaNetParams& sizes) = nullptr;
  void (*gated_delta_net)(const OpContext&, const GatedDeltaNetParams&) = nullptr;
  size_t (*mamba2_workspace)(int threads, const Mamba2Params& sizes) = nullptr;
  void (*mamba2)(const OpContext&, const Mamba2Params&) = nullptr;
  size_t (*sample_workspace)(int threads, int64_t max_rows, int64_t vocab) = nullptr;
  void (*sample)(const OpContext&, const SampleParams&) = nullptr;
};

// Names of the entries that a backend has not filled ("attention").
std::vector<std::string_view> MissingOps(const OpTable& table);

// The obvious scalar version of every op.
const OpTable& RefOps();

// The fastest kernels that this processor runs, chosen once. `variant` ("", "avx512bf16",
// "avx512", "avx2", "i8mm", "neon", "generic") forces one; an error when this processor or build
// lacks it.
const OpTable& CpuOps();
Result<const OpTable*> CpuOpsVariant(std::string_view variant);
// All that this processor and build have.
std::vector<const OpTable*> CpuOpsVariants();
// The kernels of GPU `index`. kUnsupported, with the reason, where there is none.
Result<const OpTable*> CudaOps(int index = 0);

}  // namespace nibble::kernels
