#include "kernels/cuda/linear/linear.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/linear/prepare_x.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/prefill/prefill.h"

namespace nibble::kernels::cuda {
namespace {

Result<Device*> CurrentCudaDevice() {
  int index = 0;
  cudaGetDevice(&index);
  return CudaDevice(index);
}

// Whichever kernel computes a product, its bits are the same. Beyond a few tokens decode is bound
// by its MMAs and its reads of x: µs per million weights on an H100.
bool PrefillIsFaster(const WeightTiles& weight, int64_t m) {
  constexpr int64_t kFewTokens = 8;
  if (m <= kFewTokens || !HasPrefill(weight.format)) return false;
  if (m > kMaxDecodeTokens) return true;
  const double weights = static_cast<double>(weight.n) * weight.k_tiles * kTileColumns;
  const double per_million = m <= 16 ? 0.36 : m <= 32 ? 0.6 : 1.0;
  return PrefillMicroseconds(weight, m) < 1.5 + per_million * 1e-6 * weights;
}

// Of x as Decode reads it.
size_t TransformedBytes(int64_t max_m, int64_t max_k) {
  const int64_t columns = (max_k + kTileColumns - 1) / kTileColumns * kTileColumns;
  const int tokens = DecodeTokens(static_cast<int>(std::min<int64_t>(max_m, kMaxDecodeTokens)));
  return static_cast<size_t>(tokens * columns) * sizeof(uint16_t);
}

// Of normed rows.
size_t NormedBytes(int64_t max_m, int64_t max_k) {
  return (static_cast<size_t>(max_m * max_k) * sizeof(uint16_t) + 255) / 256 * 256;
}

// Up to kMaxDecodeTokens tokens.
void Decode(const OpContext& context, const LinearParams& p) {
  const CudaWeight& weight = AsCuda(*p.weight);
  const WeightTiles& tiles = weight.tiles();
  const int m = static_cast<int>(p.m);
  DecodeArgs args = {.weight = tiles,
                     .x = p.x,
                     .x_stride = p.x_stride,
                     .bias = p.bias,
                     .y = p.y,
                     .y_f32 = p.y_f32,
                     .y_stride = p.y_stride,
                     .add = p.add,
                     .m = m};
  const DecodePlan plan = PlanDecode(tiles, m);
  if (weight.transforms_x() || !DecodeTakes(tiles, p.x, p.x_stride, m)) {
    NIBBLE_CHECK(TransformedBytes(p.m, weight.k()) <= context.workspace_bytes,
                 "linear of {} tokens: workspace of {} bytes", p.m, context.workspace_bytes);
    auto* const prepared = reinterpret_cast<uint16_t*>(context.workspace);
    args.x = prepared;
    args.x_stride = int64_t{tiles.x_tiles} * kTileColumns;
    if (plan.prepares_x) {
      PrepareX(weight, p.x, p.x_stride, m, DecodeTokens(m), prepared, context.stream);
    } else {
      TransformX(weight, p.x, p.x_stride, m, prepared, context.stream);
    }
  }
  LaunchDecode(args, plan, context.stream);
}

}  // namespace

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params) {
  NIBBLE_ASSIGN(Device * device, CurrentCudaDevice());
  NIBBLE_ASSIGN(std::unique_ptr<CudaWeight> weight, CudaWeight::Pack(params, *device));
  return std::unique_ptr<PackedWeight>(std::move(weight));
}

size_t LinearWorkspace(int64_t max_m, int64_t max_k) {
  return NormedBytes(max_m, max_k) +
         std::max(TransformedBytes(max_m, max_k), PrefillWorkspace(max_m, max_k));
}

namespace {

// With x as it is.
void LinearOfRows(const OpContext& context, const LinearParams& params) {
  if (PrefillIsFaster(AsCuda(*params.weight).tiles(), params.m)) {
    Prefill(context, params);
    return;
  }
  const int64_t tokens = params.m <= 8 ? 8 : DecodeTokensOfLaunch(AsCuda(*params.weight).tiles());
  for (int64_t token = 0; token < params.m; token += tokens) {
    LinearParams part = params;
    part.m = std::min(tokens, params.m - token);
    part.x += token * params.x_stride;
    if (part.y != nullptr) part.y += token * params.y_stride;
    if (part.y_f32 != nullptr) part.y_f32 += token * params.y_stride;
    Decode(context, part);
  }
}

}  // namespace

void Linear(const OpContext& context, const LinearParams& params) {
  if (params.norm.weight == nullptr) return LinearOfRows(context, params);
  const int64_t k = params.weight->k();
  NIBBLE_CHECK(LinearWorkspace(params.m, k) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  const size_t normed_bytes = NormedBytes(params.m, k);
  LinearParams normed = params;
  normed.x = reinterpret_cast<const uint16_t*>(context.workspace);
  normed.x_stride = k;
  normed.norm = {};
  NormRows(context, params.norm, params.x, params.x_stride, params.m, k,
           reinterpret_cast<uint16_t*>(context.workspace));
  OpContext rest = context;
  rest.workspace += normed_bytes;
  rest.workspace_bytes -= normed_bytes;
  LinearOfRows(rest, normed);
}

namespace {

// The heads' tiles on the device; empty where they cannot be multiplied in one launch.
class CudaHeads final : public PreparedWeights {
 public:
  explicit CudaHeads(Buffer table) : table_(std::move(table)) {}
  const WeightTiles* tiles() const { return table_.as<WeightTiles>(); }

 private:
  Buffer table_;
};

bool InOneLaunch(std::span<const PackedWeight* const> weights) {
  return std::ranges::all_of(weights, [&](const PackedWeight* weight) {
    const CudaWeight& head = AsCuda(*weight);
    const WeightTiles& first = AsCuda(*weights[0]).tiles();
    return !head.transforms_x() && head.tiles().format == first.format && head.n() == first.n &&
           head.k() == first.k && head.tiles().k_tiles == first.k_tiles &&
           head.tiles().group_columns == first.group_columns && first.k % kTileColumns == 0;
  });
}

}  // namespace

Result<std::unique_ptr<PreparedWeights>> PrepareHeads(
    std::span<const PackedWeight* const> weights) {
  Buffer table;
  if (!weights.empty() && InOneLaunch(weights)) {
    NIBBLE_ASSIGN(Device * device, CurrentCudaDevice());
    std::vector<WeightTiles> tiles;
    for (const PackedWeight* weight : weights) tiles.push_back(AsCuda(*weight).tiles());
    const size_t bytes = tiles.size() * sizeof(WeightTiles);
    NIBBLE_ASSIGN(table, Buffer::Allocate(bytes, *device));
    device->Upload(table.data(), tiles.data(), bytes);
    device->Synchronize();
  }
  return std::make_unique<CudaHeads>(std::move(table));
}

size_t HeadLinearWorkspace(int /*threads*/, int64_t max_t, int64_t k) {
  return LinearWorkspace(max_t, k);
}

void HeadLinear(const OpContext& context, const HeadLinearParams& p) {
  if (p.weights.empty()) return;
  const WeightTiles& first = AsCuda(*p.weights[0]).tiles();
  const auto* const heads = static_cast<const CudaHeads*>(p.prepared);
  if (heads != nullptr && heads->tiles() != nullptr && p.x_head_stride % 8 == 0 &&
      DecodeTakes(first, p.x, p.x_stride, 1)) {
    LaunchHeadDecode({.each = {.weight = first,
                               .x = p.x,
                               .x_stride = p.x_stride,
                               .y = p.y,
                               .y_stride = p.y_stride,
                               .m = static_cast<int>(p.t)},
                      .heads = heads->tiles(),
                      .head_count = static_cast<int>(p.weights.size()),
                      .x_head_stride = p.x_head_stride,
                      .y_head_stride = p.y_head_stride},
                     context.stream);
    return;
  }
  for (size_t h = 0; h < p.weights.size(); ++h) {
    Linear(context, {.x = p.x + static_cast<int64_t>(h) * p.x_head_stride,
                     .x_stride = p.x_stride,
                     .weight = p.weights[h],
                     .y = p.y + static_cast<int64_t>(h) * p.y_head_stride,
                     .y_stride = p.y_stride,
                     .m = p.t});
  }
}

}  // namespace nibble::kernels::cuda
