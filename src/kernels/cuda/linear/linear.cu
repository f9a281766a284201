#include "kernels/cuda/linear/linear.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/activated_linear.h"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/linear/one_token.h"
#include "kernels/cuda/linear/prepare_x.h"
#include "kernels/cuda/linear/stream_token.h"
#include "kernels/cuda/moe/router.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/turns.h"

namespace nibble::kernels::cuda {
namespace {

Result<Device*> CurrentCudaDevice() {
  int index = 0;
  cudaGetDevice(&index);
  return CudaDevice(index);
}

// Whichever kernel computes a product, its bits are the same. Decode's MMAs and its reads of x grow
// with the tokens: µs per million weights on an H100.
double DecodeMicroseconds(const WeightTiles& weight, int64_t m) {
  const double millions = 1e-6 * static_cast<double>(weight.n) * weight.k_tiles * kTileColumns;
  if (m <= 8) return 2.0 + (0.206 + 0.009 * static_cast<double>(m - 1)) * millions;
  if (m <= 16) return 2.0 + 0.33 * millions;
  const double read = static_cast<double>(weight.row_tiles) * weight.row_tile_bytes / 2.5e6;
  return 4.5 + std::max(read, (m <= 32 ? 0.6 : 1.0) * millions);
}

bool PrefillIsFaster(const WeightTiles& weight, int64_t m) {
  if (m == 1 || !HasPrefill(weight)) return false;
  if (m > kMaxDecodeTokens) return true;
  return HasTurns(weight.format) &&
         BestTurnPlan(weight, m).microseconds < DecodeMicroseconds(weight, m);
}

// Of x as Decode reads it.
size_t TransformedBytes(int64_t max_m, int64_t max_k) {
  const int64_t columns = (max_k + kTileColumns - 1) / kTileColumns * kTileColumns;
  const int tokens = DecodeTokens(static_cast<int>(std::min<int64_t>(max_m, kMaxDecodeTokens)));
  return static_cast<size_t>(tokens * columns) * sizeof(uint16_t);
}

// Rows that are normed at a time, where a launch of its own does it.
constexpr int64_t kNormedTokens = 256;

// Of normed rows.
size_t NormedBytes(int64_t max_m, int64_t max_k) {
  const int64_t values = std::min(max_m, kNormedTokens) * max_k;
  return (static_cast<size_t>(values) * sizeof(uint16_t) + 255) / 256 * 256;
}

// Tokens [first, first + m).
LinearParams Part(const LinearParams& params, int64_t first, int64_t m) {
  LinearParams part = params;
  part.m = m;
  part.x += first * params.x_stride;
  if (part.y != nullptr) part.y += first * params.y_stride;
  if (part.y_f32 != nullptr) part.y_f32 += first * params.y_stride;
  return part;
}

DecodeArgs ArgsOf(const LinearParams& p) {
  return {.weight = AsCuda(*p.weight).tiles(),
          .x = p.x,
          .x_stride = p.x_stride,
          .norm = p.norm,
          .bias = p.bias,
          .y = p.y,
          .y_f32 = p.y_f32,
          .y_stride = p.y_stride,
          .add = p.add,
          .activates = p.activation != nullptr,
          .activation = ActivationOf(p),
          .m = static_cast<int>(p.m)};
}

// Up to kMaxDecodeTokens tokens.
void Decode(const OpContext& context, const LinearParams& p) {
  const CudaWeight& weight = AsCuda(*p.weight);
  const WeightTiles& tiles = weight.tiles();
  DecodeArgs args = ArgsOf(p);
  const int m = args.m;
  const DecodePlan plan = PlanDecode(tiles, m, p.norm.weight != nullptr);
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
  if (OneTokenTakes(args)) return LaunchOneToken(args, context.stream);
  if (StreamTokenTakes(args)) return LaunchStreamToken(args, context.stream);
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

// Whether the kernels that read x norm it.
bool NormsItself(const LinearParams& p) {
  const CudaWeight& weight = AsCuda(*p.weight);
  if (weight.transforms_x()) return false;
  if (PrefillIsFaster(weight.tiles(), p.m))
    return PreparationNorms({.x = p.x, .x_stride = p.x_stride, .k = weight.k(), .norm = p.norm});
  return p.m <= 8 && NormsInDecode(weight.tiles(), p.norm, static_cast<int>(p.m)) &&
         DecodeTakes(weight.tiles(), p.x, p.x_stride, static_cast<int>(p.m));
}

// Any norm is NormsItself's.
void LinearOfRows(const OpContext& context, const LinearParams& params) {
  if (PrefillIsFaster(AsCuda(*params.weight).tiles(), params.m)) {
    Prefill(context, params);
    return;
  }
  for (int64_t token = 0; token < params.m;) {
    const int tokens = DecodeTokensOfLaunch(AsCuda(*params.weight).tiles(), params.m - token);
    Decode(context, Part(params, token, tokens));
    token += tokens;
  }
}

// Whether the kernel that multiplies stores y as y_layout says. Pairs of CTAs could, but no GPU has
// shown yet that they do.
bool StoresLaidOut(const LinearParams& p) {
  const WeightTiles& tiles = AsCuda(*p.weight).tiles();
  return !ComposesActivation(p) && PrefillIsFaster(tiles, p.m) && TakesTurns(tiles, p.m) &&
         BestTurnPlan(tiles, p.m).splits == 1;
}

// By way of rows in the workspace.
void LinearThenLayOut(const OpContext& context, const LinearParams& params) {
  const int64_t f = params.weight->n() / 2;
  const size_t bytes = Bf16RowsBytes(params.m, f);
  NIBBLE_CHECK(bytes <= context.workspace_bytes, "{} tokens of {}: workspace of {} bytes", params.m,
               f, context.workspace_bytes);
  auto* const rows = reinterpret_cast<uint16_t*>(context.workspace);
  LinearParams product = params;
  product.y = rows;
  product.y_stride = f;
  product.y_layout = {};
  Linear(Behind(context, bytes), product);
  LayOutRows(rows, params.m, f, params.y_layout, params.y, context.stream);
}

}  // namespace

// Layouts other than rows are of up to kMaxTurnTokens tokens.
size_t ActivatedWorkspace(int64_t max_m, int64_t f) {
  const size_t laid_out = HasWgmma(CurrentCapability())
                              ? Bf16RowsBytes(std::min<int64_t>(max_m, kMaxTurnTokens), f)
                              : 0;
  return laid_out + (f % kPairedRows == 0 ? 0 : GateUpBytes(max_m, f));
}

// Larger parts have not been compared with the pass on a GPU.
constexpr int kComparedPartTokens = 64;

ActivationLayout XLayout(const PackedWeight& packed, int64_t m) {
  const CudaWeight& weight = AsCuda(packed);
  const WeightTiles& tiles = weight.tiles();
  if (weight.transforms_x() || weight.k() % kTileColumns != 0 || !PrefillIsFaster(tiles, m) ||
      !TakesTurns(tiles, m))
    return {};
  const int tokens = BestTurnPlan(tiles, m).tokens;
  return {.part_tokens = tokens <= kComparedPartTokens ? tokens : 0};
}

void Linear(const OpContext& context, const LinearParams& params) {
  if (!params.y_layout.rows() && !StoresLaidOut(params)) return LinearThenLayOut(context, params);
  if (ComposesActivation(params))
    return LinearThenActivation(context, params, Linear, ApplyActivation);
  if (params.norm.weight == nullptr || NormsItself(params)) return LinearOfRows(context, params);
  const int64_t k = params.weight->k();
  NIBBLE_CHECK(LinearWorkspace(params.m, k) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  auto* const normed = reinterpret_cast<uint16_t*>(context.workspace);
  const OpContext rest = Behind(context, NormedBytes(params.m, k));
  for (int64_t token = 0; token < params.m; token += kNormedTokens) {
    LinearParams part = Part(params, token, std::min(kNormedTokens, params.m - token));
    NormRows(context, params.norm, part.x, part.x_stride, part.m, k, normed);
    part.x = normed;
    part.x_stride = k;
    part.norm = {};
    LinearOfRows(rest, part);
  }
}

namespace {

// Few rows of BF16 with FP32 outputs for one token, as b and a of Gated DeltaNet are: the router's
// kernel. False: not taken.
bool TookAsRouter(const OpContext& context, const LinearParams& p) {
  if (p.m != 1 || p.y_f32 == nullptr || p.bias != nullptr || AsCuda(*p.weight).transforms_x())
    return false;
  const moe::RouterParams rows = {.router_x = p.x,
                                  .router_stride = p.x_stride,
                                  .router = AsCuda(*p.weight).tiles(),
                                  .logits = p.y_f32,
                                  .x = p.x,
                                  .x_stride = p.x_stride,
                                  .norm = p.norm,
                                  .t = 1,
                                  .before_weights = true};
  if (!moe::OneRouterTakes(rows)) return false;
  moe::Router(context, rows);
  return true;
}

}  // namespace

void LinearPair(const OpContext& context, const LinearPairParams& params) {
  const LinearParams& first = params.first;
  const bool plain = !AsCuda(*first.weight).transforms_x() &&
                     !AsCuda(*params.second.weight).transforms_x() &&
                     (first.norm.weight == nullptr || NormsItself(first));
  if (first.m == 1 && plain &&
      DecodeTakes(AsCuda(*first.weight).tiles(), first.x, first.x_stride, 1)) {
    const DecodeArgs args = ArgsOf(first), second = ArgsOf(params.second);
    if (OneTokenTakesBoth(args, second)) return LaunchOneTokenBoth(args, second, context.stream);
    if (StreamTokenTakesBoth(args, second))
      return LaunchStreamTokenBoth(args, second, context.stream);
  }
  // Before the other: then nothing stands between that and what reads both, and its weights come in
  // meanwhile.
  const bool second_done = TookAsRouter(context, params.second);
  Linear(context, first);
  if (!second_done) Linear(context, params.second);
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
