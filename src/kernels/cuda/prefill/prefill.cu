#include "kernels/cuda/prefill/prefill.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/linear/with_format.h"
#include "kernels/cuda/prefill/dense_tiles.cuh"
#include "kernels/cuda/prefill/turns.h"

namespace nibble::kernels::cuda {

namespace {

// Bound the workspace: of a launch's tokens laid out, whichever is more.
constexpr int64_t kTokensAtOnce = 2112;
constexpr int64_t kBytesAtOnce = int64_t{64} << 20;
constexpr int64_t kTileTokens = 176;  // of the largest tile

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Rows, tokens and measured microseconds per k-tile on one multiprocessor of an H100: decoding
// costs as much for few tokens as for many. Weights with scales by groups lack the last one.
struct ShapeCost {
  int rows;
  int tokens;
  double microseconds;
};

constexpr ShapeCost kShapes[] = {
    {128, 128, 0.385}, {128, 64, 0.285}, {64, 128, 0.285}, {128, 32, 0.235}, {128, 176, 0.49}};

double Microseconds(const ShapeCost& shape, const WeightTiles& weight, int64_t m) {
  const int64_t tiles = int64_t{CeilDiv(weight.n, shape.rows)} * CeilDiv(m, shape.tokens);
  return CeilDiv(tiles, CurrentDevice().multiprocessors) * shape.microseconds * weight.k_tiles;
}

int BestShape(const WeightTiles& weight, int64_t m) {
  int best = 0;
  for (int i = 1; i < PrefillShapes(weight.format); ++i)
    if (Microseconds(kShapes[i], weight, m) < Microseconds(kShapes[best], weight, m)) best = i;
  return best;
}

int64_t MostBytesAtOnce(int64_t k) {
  return std::max(kBytesAtOnce, PreparedBytes(kTokensAtOnce, k));
}

// Tokens of each launch but the last, where M are more than are laid out at once: equal parts, in
// whole tiles.
int64_t TokensAtOnce(int64_t m, int64_t k) {
  const int64_t launches = std::max(1, CeilDiv(PreparedBytes(m, k), MostBytesAtOnce(k)));
  return CeilDiv(CeilDiv(m, launches), kTileTokens) * kTileTokens;
}

// Weights of fewer rows are through with a band before its successor is laid out; with more rows
// laying out takes too little of the time to be felt.
constexpr int kLeastRestRowTiles = 128;
constexpr int kMostRestRowTiles = 384;
constexpr int kLeastBandTokens = BandTiles(128) * 128;

// The bands by which the tiles of a shape lay out the rest of x, or 0.
int RestBandTokens(const WeightTiles& weight, int shape) {
  if (weight.row_tiles < kLeastRestRowTiles || weight.row_tiles > kMostRestRowTiles) return 0;
  return WithFormat(weight.format,
                    [&]<TileFormat kFormat>() { return RestBandTokensOf<kFormat>(shape); });
}

// x as another op has laid it out.
PreparedTokens AlreadyPrepared(const LinearParams& params, const TurnPlan& plan) {
  NIBBLE_CHECK(params.x_layout.part_tokens == plan.tokens && params.norm.weight == nullptr,
               "x in parts of {} tokens for a linear of parts of {}", params.x_layout.part_tokens,
               plan.tokens);
  auto* const data = reinterpret_cast<std::byte*>(const_cast<uint16_t*>(params.x));
  return {.data = data,
          .groups = plan.tokens / kGroupTokens,
          .tiles = CeilDiv(params.weight->k(), kTileColumns)};
}

}  // namespace

bool HasTurns(TileFormat format) { return HasWgmma(CurrentCapability()) && !HasGroups(format); }

// Of more than 64 tokens each weight is decoded twice, which pays where tiles are few; measured with
// 4 bits alone.
bool TakesTurns(const WeightTiles& weight, int64_t m) {
  if (m > kMaxTurnTokens || !HasTurns(weight.format)) return false;
  if (m <= kMaxTurnTokens / 2) return true;
  constexpr double kPreparation = 4.6;  // of tokens
  return CodeBytes(weight.format) <= 512 &&
         BestTurnPlan(weight, m).microseconds <
             kPreparation + Microseconds(kShapes[BestShape(weight, m)], weight, m);
}

int PrefillShapes(TileFormat format) {
  return static_cast<int>(std::size(kShapes)) - (HasGroups(format) ? 1 : 0);
}

bool HasPrefill(const WeightTiles& weight) {
  return HasWgmma(CurrentCapability()) &&
         (!HasGroups(weight.format) || weight.group_columns >= kTileColumns);
}

size_t PrefillWorkspace(int64_t max_m, int64_t max_k) {
  if (!HasWgmma(CurrentCapability())) return 0;
  const int64_t all = PreparedBytes(std::max<int64_t>(max_m, kMaxTurnTokens), max_k);
  const int64_t most = MostBytesAtOnce(max_k) + PreparedBytes(kTileTokens, max_k);
  return static_cast<size_t>(std::min(all, most) + DoneBytes(max_m, kLeastBandTokens)) +
         kPieceBytes;
}

void LaunchPrefill(const PrefillParams& p, void* stream, int shape) {
  if (shape < 0) shape = BestShape(p.weight, p.m);
  WithFormat(p.weight.format, [&]<TileFormat kFormat>() {
    if constexpr (HasGroups(kFormat)) {
      LaunchDenseGroups(p, stream, shape);
    } else {
      LaunchDense<kFormat>(p, stream, shape);
    }
  });
}

void Prefill(const OpContext& context, const LinearParams& params) {
  const CudaWeight& weight = AsCuda(*params.weight);
  NIBBLE_CHECK(PrefillWorkspace(params.m, weight.k()) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  const auto address = reinterpret_cast<uintptr_t>(context.workspace);
  std::byte* const aligned =
      context.workspace + (kPieceBytes - address % kPieceBytes) % kPieceBytes;
  const int64_t at_once = TokensAtOnce(params.m, weight.k());
  for (int64_t token = 0; token < params.m; token += at_once) {
    const int64_t m = std::min(at_once, params.m - token);
    const bool turns = TakesTurns(weight.tiles(), m);
    const TurnPlan plan = turns ? BestTurnPlan(weight.tiles(), m) : TurnPlan{};
    const int shape = turns ? 0 : BestShape(weight.tiles(), m);
    const PreparedTokens x =
        params.x_layout.rows()
            ? PrepareTokens({.x = params.x + token * params.x_stride,
                             .x_stride = params.x_stride,
                             .m = m,
                             .k = weight.k(),
                             .column_order = weight.column_order(),
                             .input_multiplier = weight.input_multiplier(),
                             .norm = params.norm,
                             .part_tokens = plan.tokens,
                             .band_tokens = turns ? 0 : RestBandTokens(weight.tiles(), shape)},
                            aligned, context.stream)
            : AlreadyPrepared(params, plan);
    const int64_t first = token * params.y_stride;
    const PrefillParams product = {
        .weight = weight.tiles(),
        .x = x,
        .bias = params.bias,
        .y = params.y == nullptr ? nullptr : params.y + first,
        .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + first,
        .y_stride = params.y_stride,
        .add = params.add,
        .activates = params.activation != nullptr,
        .activation = ActivationOf(params),
        .y_layout = params.y_layout,
        .m = m};
    if (turns) {
      LaunchTurns(product, plan, context.stream);
    } else {
      LaunchPrefill(product, context.stream, shape);
    }
  }
}

}  // namespace nibble::kernels::cuda
