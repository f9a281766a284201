#include "kernels/cpu/linear/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/thread_pool.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/packed_weight.h"
#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/parallel.h"
#include "numerics/bf16.h"

namespace nibble::kernels::cpu {
namespace {

// Below this many elements preparing on one thread is faster than waking the others.
constexpr int64_t kParallelPrepare = 32768;

// A last tile may have that many slots more than tokens.
constexpr int64_t kMaxIdleSlots = 16;

// The longest prepared form of 32 activations.
constexpr int64_t kMaxBlockBytes = sizeof(F32Block);

// K in whole groups of any format.
constexpr int64_t kMaxGroupK = 128;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How one weight wants its activations, and what multiplies them.
struct Plan {
  PanelKernel kernel;
  void (*prepare)(const PrepareJob&);
  int64_t block_bytes;
  int64_t block_k = kBlockK;
};

// Of m tokens.
Plan PlanFor(const CpuPackedWeight& weight, int64_t m) {
  const LinearKernels& kernels = weight.kernels();
  const bool requantized = weight.activations() == ActivationFormat::kRequantized;
  const bool int8 = weight.activations() == ActivationFormat::kInt8 || requantized;
  const bool int16 = weight.activations() == ActivationFormat::kInt16;
  const auto with_int8 = [&](const PanelKernel& kernel, const PanelKernel& of_many = {}) {
    if (requantized && m >= kRequantizedTokens && of_many.run != nullptr)
      return Plan{of_many, kernels.prepare_wide_int8, sizeof(WideInt8Block), kWideK};
    return Plan{kernel, kernels.prepare_int8, sizeof(Int8Block)};
  };
  const auto with_int8_sum = [&](const PanelKernel& kernel) {
    return Plan{kernel, kernels.prepare_int8_sum, sizeof(Int8SumBlock)};
  };
  const auto with_int16 = [&](const PanelKernel& kernel, const PanelKernel& digits) {
    const int64_t largest = *std::max_element(digits.sizes, digits.sizes + kMaxTileSizes);
    if (kernel.run == nullptr || m <= largest)
      return Plan{digits, kernels.prepare_digits, sizeof(DigitBlock)};
    return Plan{kernel, kernels.prepare_int16, sizeof(Int16Block)};
  };
  const auto with_bf16 = [&](const PanelKernel& kernel, const PanelKernel& of_many = {}) {
    const bool many = of_many.run != nullptr && m >= kManyTokens;
    return Plan{many ? of_many : kernel, kernels.prepare_bf16, kernels.bf16_block_bytes};
  };
  const auto with_exact = [&](const PanelKernel& int24, const PanelKernel& bf16,
                              const PanelKernel& of_many = {}) {
    if (bf16.run != nullptr) return with_bf16(bf16, of_many);
    return Plan{int24, kernels.prepare_int24, sizeof(Int24Block)};
  };
  const auto with_int4 = [&](const PanelKernel& int24, const PanelKernel& bf16) {
    if (bf16.run != nullptr) return with_bf16(bf16);
    return Plan{int24, kernels.prepare_int24_sum, sizeof(Int24SumBlock)};
  };
  const auto with_f32 = [&](const PanelKernel& kernel) {
    return Plan{kernel, kernels.prepare_f32, sizeof(F32Block)};
  };
  switch (weight.format()) {
    case WeightFormat::kNvfp4:
      if (int8) return with_int8(kernels.nvfp4_int8, kernels.nvfp4_requantized);
      if (int16) return with_int16(kernels.nvfp4_int16, kernels.nvfp4_digits);
      return with_exact(kernels.nvfp4_int24, kernels.nvfp4_bf16);
    case WeightFormat::kMxfp4:
      if (int8) return with_int8(kernels.mxfp4_int8, kernels.mxfp4_requantized);
      if (int16) return with_int16(kernels.mxfp4_int16, kernels.mxfp4_digits);
      return with_exact(kernels.mxfp4_int24, kernels.mxfp4_bf16, kernels.mxfp4_bf16_many);
    case WeightFormat::kBf16:
      return with_bf16(kernels.bf16);
    case WeightFormat::kFp8:
      return with_bf16(kernels.fp8);
    case WeightFormat::kF16:
      return with_f32(kernels.f16);
    case WeightFormat::kF32:
      return with_f32(kernels.f32);
    case WeightFormat::kInt4:
      return int8 ? with_int8_sum(kernels.int4_int8)
                  : with_int4(kernels.int4_int24, kernels.int4_bf16);
    case WeightFormat::kInt8:
      return int8 ? with_int8_sum(kernels.int8_int8) : with_bf16(kernels.int8_bf16);
  }
  NIBBLE_CHECK(false, "weight format {}", static_cast<int>(weight.format()));
  return {};
}

// kPassTokens or kWidePassTokens.
int64_t PassTokens(const PackedWeight& weight) {
  const Plan plan = PlanFor(static_cast<const CpuPackedWeight&>(weight), kPassTokens);
  return plan.block_bytes <= 3 * plan.block_k / 2 ? kPassTokens : kWidePassTokens;
}

// One pass of m tokens as tiles of `tile` tokens, then of last_tile slots.
struct Tiling {
  int64_t tile = 1;
  int64_t wide_tokens = 0;  // in tiles of `tile`
  int64_t last_tile = 1;

  // The tile of a token: its first token and its slots.
  int64_t First(int64_t token) const {
    if (token < wide_tokens) return token - token % tile;
    return token - (token - wide_tokens) % last_tile;
  }
  int64_t Slots(int64_t token) const { return token < wide_tokens ? tile : last_tile; }
};

// The fewest tiles that hold the tokens. Where the kernel has every size, their sizes differ by one
// at most: a tile of few tokens takes nearly the time of a large one. Else full tiles and a smaller
// last one with idle slots.
Tiling TilingFor(const PanelKernel& kernel, int64_t m) {
  if (m == kernel.one_tile) return {.tile = m, .wide_tokens = m};
  const auto* end = std::find(kernel.sizes, kernel.sizes + kMaxTileSizes, 0);
  const auto fitting = [&](int64_t tokens) { return std::lower_bound(kernel.sizes, end, tokens); };
  const int64_t largest = *(end - 1);
  const int64_t tiles = CeilDiv(m, largest);
  const int64_t even = CeilDiv(m, tiles);
  if (end - kernel.sizes == largest) {
    const int64_t narrow = tiles * even - m;  // tiles of a token less
    return {.tile = even,
            .wide_tokens = (tiles - narrow) * even,
            .last_tile = std::max<int64_t>(even - 1, 1)};
  }
  const bool exact = *fitting(even) == even;
  const int64_t tile = exact ? even : m < largest ? *fitting(m) : largest;
  return {.tile = tile, .wide_tokens = m / tile * tile, .last_tile = *fitting(m % tile)};
}

// Prepares tokens [begin, end) of the pass, each into its tile: [block of 32 k][token].
void PrepareTokens(const LinearParams& params, const CpuPackedWeight& weight, const Plan& plan,
                   Tiling tiling, int64_t blocks, int64_t first_token, int64_t begin, int64_t end,
                   std::byte* workspace) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t first = tiling.First(token);
    plan.prepare({.x = params.x + (first_token + token) * params.x_stride,
                  .k = weight.k(),
                  .column_order = weight.column_order(),
                  .input_multiplier = weight.input_multiplier(),
                  .blocks = blocks,
                  .out = workspace + (first * blocks + token - first) * plan.block_bytes,
                  .block_stride = tiling.Slots(token) * plan.block_bytes});
  }
}

// A pass of m tokens from first_token on, prepared (or about to be) in `activations`, over all
// panels.
PanelJob JobOf(const LinearParams& params, const Plan& plan, Tiling tiling, int64_t first_token,
               int64_t m, const std::byte* activations) {
  const auto& weight = static_cast<const CpuPackedWeight&>(*params.weight);
  const int64_t out = first_token * params.y_stride;
  return {
      .weights = weight.panel(0),
      .panel_bytes = weight.panel_bytes(),
      .groups = weight.groups(),
      .row_scales = weight.row_scales(),
      .block_scales = weight.block_scales(),
      .scale_columns = weight.scale_columns(),
      .blocks_per_scale = weight.blocks_per_scale(),
      .header_bytes = weight.header_bytes(),
      .activations = activations,
      .token_bytes = CeilDiv(weight.padded_k(), plan.block_k) * plan.block_bytes,
      .m = m,
      .tile = tiling.tile,
      .wide_tokens = tiling.wide_tokens,
      .last_tile = tiling.last_tile,
      .bias = params.bias,
      .y = params.y == nullptr ? nullptr : params.y + out,
      .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + out,
      .y_stride = params.y_stride,
      .add = params.add,
      .n = weight.n(),
  };
}

// The job of the weight's rows from panel `begin` on, as if they were a weight of their own.
PanelJob FromPanel(PanelJob job, int64_t begin) {
  const int64_t rows = begin * kPanelRows;
  job.weights += begin * job.panel_bytes;
  job.row_scales += rows;
  if (job.block_scales != nullptr) job.block_scales += rows * job.scale_columns;
  if (job.bias != nullptr) job.bias += rows;
  job.n -= rows;
  return job;
}

void RunPanels(const PanelKernel& kernel, const PanelJob& job, int64_t begin, int64_t end) {
  const bool one_tile = kernel.run_one_tile != nullptr && job.m <= job.tile;
  (one_tile ? kernel.run_one_tile : kernel.run)(job, begin, end);
}

void LinearPass(const OpContext& context, const LinearParams& params, int64_t first_token,
                int64_t m) {
  const auto& weight = static_cast<const CpuPackedWeight&>(*params.weight);
  const Plan plan = PlanFor(weight, m);
  const int64_t blocks = CeilDiv(weight.padded_k(), plan.block_k);
  const Tiling tiling = TilingFor(plan.kernel, m);
  auto prepare = [&](int64_t begin, int64_t end) {
    PrepareTokens(params, weight, plan, tiling, blocks, first_token, begin, end, context.workspace);
  };
  if (m * weight.k() < kParallelPrepare) {
    prepare(0, m);
  } else {
    ForEachRange(context, m, 1, prepare);
  }
  const PanelJob job = JobOf(params, plan, tiling, first_token, m, context.workspace);
  ForEachRange(context, weight.panels(), 1,
               [&](int64_t begin, int64_t end) { RunPanels(plan.kernel, job, begin, end); });
}

size_t PreparedBytes(int64_t max_m, int64_t max_k) {
  const int64_t padded_k = CeilDiv(max_k, kMaxGroupK) * kMaxGroupK;
  const int64_t slots = std::min(max_m, kPassTokens) + kMaxIdleSlots;
  return static_cast<size_t>(slots * (padded_k / kBlockK) * kMaxBlockBytes);
}

void CheckWorkspace(const OpContext& context, const LinearParams& params) {
  NIBBLE_CHECK(LinearWorkspace(params.m, params.weight->k()) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
}

}  // namespace

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params,
                                                 const LinearKernels& kernels) {
  NIBBLE_ASSIGN(std::unique_ptr<CpuPackedWeight> weight, CpuPackedWeight::Pack(params, kernels));
  return std::unique_ptr<PackedWeight>(std::move(weight));
}

// Prepared activations, then the normed rows of a pass.
size_t LinearWorkspace(int64_t max_m, int64_t max_k) {
  return PreparedBytes(max_m, max_k) +
         static_cast<size_t>(std::min(max_m, kPassTokens) * max_k) * sizeof(uint16_t);
}

void Linear(const OpContext& context, const LinearParams& params) {
  CheckWorkspace(context, params);
  const int64_t most = PassTokens(*params.weight);
  for (int64_t token = 0; token < params.m; token += most) {
    LinearPass(context, params, token, std::min(most, params.m - token));
  }
}

void NormedLinear(const VectorKernels& kernels, const OpContext& context,
                  const LinearParams& params) {
  if (params.norm.weight == nullptr) return Linear(context, params);
  CheckWorkspace(context, params);
  const int64_t k = params.weight->k();
  auto* const normed = reinterpret_cast<uint16_t*>(context.workspace + PreparedBytes(params.m, k));
  const int64_t most = PassTokens(*params.weight);
  for (int64_t token = 0; token < params.m; token += most) {
    const int64_t m = std::min(most, params.m - token);
    NormRows(kernels, context, params.norm, params.x + token * params.x_stride, params.x_stride, m,
             k, normed);
    LinearParams pass = params;
    pass.x = normed;
    pass.x_stride = k;
    pass.m = m;
    if (pass.y != nullptr) pass.y += token * params.y_stride;
    if (pass.y_f32 != nullptr) pass.y_f32 += token * params.y_stride;
    LinearPass(context, pass, 0, m);
  }
}

int64_t LinearPanels(const PackedWeight& weight) {
  return static_cast<const CpuPackedWeight&>(weight).panels();
}

void LinearOfPanels(const OpContext& context, const LinearParams& params, int64_t begin,
                    int64_t end) {
  CheckWorkspace(context, params);
  const auto& weight = static_cast<const CpuPackedWeight&>(*params.weight);
  const int64_t most = PassTokens(weight);
  for (int64_t token = 0; token < params.m; token += most) {
    const int64_t m = std::min(most, params.m - token);
    const Plan plan = PlanFor(weight, m);
    const Tiling tiling = TilingFor(plan.kernel, m);
    PrepareTokens(params, weight, plan, tiling, CeilDiv(weight.padded_k(), plan.block_k), token, 0,
                  m, context.workspace);
    const PanelJob job = JobOf(params, plan, tiling, token, m, context.workspace);
    RunPanels(plan.kernel, FromPanel(job, begin), 0, end - begin);
  }
}

void Embed(const OpContext& context, const EmbedParams& params) {
  const auto& table = static_cast<const CpuPackedWeight&>(*params.table);
  const int64_t d = table.k();
  context.pool->ParallelFor(params.t, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      uint16_t* row = params.out + token * d;
      table.GatherRow(EmbeddedId(params, token), row);
      if (params.scale == 1.0f) continue;
      for (int64_t i = 0; i < d; ++i) row[i] = Bf16FromFloat(Bf16ToFloat(row[i]) * params.scale);
    }
  });
}

}  // namespace nibble::kernels::cpu
