#include "kernels/cuda/moe/moe.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/few_tokens.h"
#include "kernels/cuda/moe/gather.h"
#include "kernels/cuda/moe/grouped.h"
#include "kernels/cuda/moe/listen.h"
#include "kernels/cuda/moe/one_token.h"
#include "kernels/cuda/moe/prepared_experts.h"
#include "kernels/cuda/moe/route.h"
#include "kernels/cuda/moe/router.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/w4a4/experts.h"
#include "kernels/cuda/w4a4/w4a4.h"

namespace nibble::kernels::cuda {
namespace {

using namespace moe;

// Tokens of one chain of launches, with grouped products and without: bounds the workspace.
constexpr int64_t kMaxTokens = 4096;
constexpr int64_t kMaxStreamedTokens = 512;
// The same in W4A4, which reads each expert once per chain, too.
constexpr int64_t kMaxW4a4Tokens = 2048;

// More than multiprocessors.
constexpr int64_t kMaxShares = 512;

// Rows whose inputs are gathered at a time, where that is needed.
constexpr int64_t kGatheredRows = 768;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t GatheredTokens(int64_t t, int32_t top_k) {
  return std::min(t, std::max<int64_t>(1, kGatheredRows / (top_k + 1)));
}

struct Scratch {
  uint16_t* normed = nullptr;      // (T, D or the router's K)
  float* logits = nullptr;         // (T, E)
  float* shared_logits = nullptr;  // (T)
  Lists lists;
  int32_t* chosen = nullptr;
  float* chosen_weight = nullptr;
  uint16_t* h = nullptr;           // (rows, F rounded up)
  float* y = nullptr;              // (rows, D)
  uint16_t* gathered_x = nullptr;  // (gathered rows, D rounded up)
  uint16_t* gathered_x_up = nullptr;
  uint16_t* gathered_h = nullptr;  // (gathered rows, F rounded up)
  std::byte* linear = nullptr;
  std::byte* grouped = nullptr;
  // Of W4A4:
  uint16_t* hidden = nullptr;   // (rows, 2F)
  std::byte* pieces = nullptr;  // rows in NVFP4
};

// W4A4 takes the shared expert's linears from here, too.
size_t LinearBytes(const MoeSizes& s) {
  const int64_t router_k = std::max(s.d, s.router_d);
  if (!s.w4a4) return LinearWorkspace(s.t, router_k);
  const int64_t k = std::max(router_k, s.f);
  return std::max(LinearWorkspace(s.t, k), LinearW4a4Workspace(s.t, k));
}

int64_t GroupedBytes(const MoeSizes& s) {
  return GroupedWorkspace({.t = s.t, .d = s.d, .f = s.f, .experts = s.experts, .top_k = s.top_k});
}

// 256-byte aligned pieces, of workspaces that may be only 64-byte aligned.
int64_t Carve(std::byte* base, const MoeSizes& s, Scratch* out) {
  int64_t used = 0;
  const auto take = [&](auto** pointer, int64_t count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
  };
  const int64_t rows = s.t * (s.top_k + 1), routed_rows = s.t * s.top_k;
  const int64_t gathered = GatheredTokens(s.t, s.top_k) * (s.top_k + 1);
  const int64_t x_stride = RoundUp(s.d, kTileColumns), h_stride = RoundUp(s.f, kTileColumns);
  take(&out->normed, s.t * std::max(s.d, s.router_d));
  take(&out->logits, s.t * s.experts);
  take(&out->shared_logits, s.t);
  take(&out->lists.counts, 1);
  take(&out->lists.first_row, s.experts + 2);
  take(&out->lists.groups, MaxGroups(s.t, s.experts, s.top_k, true, 8));
  take(&out->lists.gate_up_shares, kMaxShares);
  take(&out->lists.down_shares, kMaxShares);
  take(&out->lists.row_token, rows);
  take(&out->lists.row_weight, rows);
  take(&out->lists.places, rows);
  take(&out->chosen, routed_rows);
  take(&out->chosen_weight, routed_rows);
  take(&out->h, rows * h_stride);
  const int64_t streamed_tokens = std::min(s.t, s.w4a4 ? kMaxW4a4Tokens : kMaxStreamedTokens);
  const int64_t streamed = streamed_tokens * (s.top_k + 1);
  take(&out->y, streamed * s.d);
  take(&out->gathered_x, gathered * x_stride);
  take(&out->gathered_x_up, gathered * x_stride);
  take(&out->gathered_h, gathered * h_stride);
  take(&out->linear, static_cast<int64_t>(LinearBytes(s)));
  take(&out->grouped, GroupedBytes(s));
  if (s.w4a4) {
    const int64_t groups = MaxGroups(streamed_tokens, s.experts, s.top_k, true, kColumnsOfGroup);
    take(&out->hidden, streamed * 2 * s.f);
    take(&out->pieces, static_cast<int64_t>(w4a4::ExpertTokenBytes(groups, std::max(s.d, s.f))));
  }
  return used;
}

class MoeRun {
 public:
  MoeRun(const OpContext& context, const MoeParams& params, const MoePhases& phases)
      : context_(context),
        p_(params),
        phases_(phases),
        prepared_(static_cast<const PreparedExperts&>(*params.prepared)),
        w4a4_(params.w4a4 && params.listener == nullptr && prepared_.takes_w4a4()),
        shared_(FactsOf(params.shared)),
        transforms_x_(prepared_.transforms_x() || shared_.transforms_x),
        transforms_h_(prepared_.transforms_h() || shared_.transforms_h) {
    AddTo(params.shared, &shared_gate_up_, &shared_down_);
  }

  void Run() {
    const bool aligned =
        p_.d % kTileColumns == 0 && (norms_x() || reinterpret_cast<uintptr_t>(p_.x) % 16 == 0);
    gathers_x_ = transforms_x_ || p_.weight_on_input || !aligned;
    for (int64_t first = 0; first < p_.t; first += t_) RunTokens(first, TokensFrom(first));
  }

 private:
  // How many tokens the next chain of launches takes.
  int64_t TokensFrom(int64_t first) const {
    const int64_t left = std::min(p_.t - first, kMaxTokens);
    if (w4a4_) return std::min(left, kMaxW4a4Tokens);
    if (gathers_x_ || transforms_h_) return GatheredTokens(left, p_.routing.top_k);
    return RunsGrouped(left) ? left : std::min(left, kMaxStreamedTokens);
  }

  bool RunsGrouped(int64_t t) const {
    return !gathers_x_ && !transforms_h_ && p_.listener == nullptr && GroupedTakes(GroupedOf(t));
  }

  bool RunsFew() const {
    return !w4a4_ && !gathers_x_ && !transforms_h_ && p_.listener == nullptr && t_ <= kFewTokens &&
           FewTakes(FewOf(), FewSetsOf());
  }

  void RunTokens(int64_t first, int64_t t) {
    first_ = first, t_ = t;
    const MoeSizes sizes = {.t = t,
                            .d = p_.d,
                            .f = std::max(p_.f, p_.shared_f),
                            .router_d = p_.router_x != nullptr ? p_.router->k() : 0,
                            .experts = p_.routing.experts,
                            .top_k = p_.routing.top_k,
                            .w4a4 = w4a4_};
    const int64_t needed = Carve(context_.workspace, sizes, &scratch_);
    NIBBLE_CHECK(needed <= static_cast<int64_t>(context_.workspace_bytes),
                 "experts of {} tokens: workspace of {} bytes", t, context_.workspace_bytes);
    h_stride_ = RoundUp(sizes.f, kTileColumns);
    ChooseGroups();
    if (phases_.router) RunRouter(sizes);
    if (RunsFew()) {
      const FewParams few = FewOf();
      const FewSets sets = FewSetsOf();
      const bool one = OneTakes(few, sets);
      if (t > kBesideTokens && phases_.route) ChooseForTokens(context_, RouteOf());
      if (phases_.gate_up) (one ? OneGateUp : FewGateUp)(context_, few, sets);
      if (phases_.down) (one ? OneDown : FewDown)(context_, few, sets);
      return;
    }
    if (phases_.route) Route(context_, RouteOf());
    if (w4a4_) return RunW4a4(sizes);
    if (RunsGrouped(t)) {
      GroupedParams grouped = GroupedOf(t);
      grouped.workspace = scratch_.grouped;
      grouped.workspace_bytes = GroupedBytes(sizes);
      if (phases_.gate_up) GroupedHidden(context_, grouped);
      if (phases_.down) GroupedOutput(context_, grouped);
      return;
    }
    if (phases_.gate_up) RunGateUp();
    if (phases_.down) RunDown();
    if (p_.listener != nullptr) Tell();
  }

  // As many rows per group as an expert is likely to have, and as shared memory takes.
  void ChooseGroups() {
    const int64_t rows = t_ * p_.routing.top_k / std::max(1, p_.routing.experts);
    group_rows_ = w4a4_ ? kColumnsOfGroup : rows <= 5 ? 8 : rows <= 12 ? 16 : 32;
    const auto set = [&] {
      max_groups_ = MaxGroups(t_, p_.routing.experts, p_.routing.top_k, has_shared(), group_rows_);
      gate_up_ = GateUpOf();
      down_ = DownOf();
    };
    for (set(); !w4a4_ && group_rows_ > 8 && !(PhaseFits(gate_up_) && PhaseFits(down_)); set())
      group_rows_ /= 2;
  }

  bool has_shared() const { return p_.shared.gate_up != nullptr; }
  bool norms_x() const { return p_.norm.weight != nullptr && p_.router_x == nullptr; }
  const uint16_t* given_x() const { return p_.x + first_ * p_.d; }
  // What experts see.
  const uint16_t* x() const { return norms_x() ? scratch_.normed : given_x(); }

  void RunLinear(const MoeSizes& sizes, const uint16_t* x, const PackedWeight* weight,
                 const float* bias, float* y) const {
    OpContext context = context_;
    context.workspace = scratch_.linear;
    context.workspace_bytes = LinearBytes(sizes);
    Linear(context, {.x = x,
                     .x_stride = weight->k(),
                     .weight = weight,
                     .bias = bias,
                     .y_f32 = y,
                     .y_stride = weight->n(),
                     .m = t_});
  }

  void RunRouter(const MoeSizes& sizes) const {
    const int64_t router_k = p_.router->k();
    const uint16_t* router_x = p_.router_x != nullptr ? p_.router_x + first_ * router_k : given_x();
    const bool gated = has_shared() && p_.shared_gate != nullptr;
    RouterParams params = {.router_x = router_x,
                           .router_stride = router_k,
                           .router = AsCuda(*p_.router).tiles(),
                           .bias = p_.router_bias,
                           .logits = scratch_.logits,
                           .x = given_x(),
                           .x_stride = p_.d,
                           .gate_logits = scratch_.shared_logits,
                           .norm = p_.norm,
                           .normed = scratch_.normed,
                           .t = t_,
                           .before_few = RunsFew(),
                           .before_weights = RunsFew(),
                           .gate = gated ? AsCuda(*p_.shared_gate).tiles() : WeightTiles{}};
    const bool transformed =
        AsCuda(*p_.router).transforms_x() || (gated && AsCuda(*p_.shared_gate).transforms_x());
    if (!transformed && RouterTakes(params)) return Router(context_, params);
    if (p_.norm.weight != nullptr) {
      NormRows(context_, p_.norm, router_x, router_k, t_, router_k, scratch_.normed);
      router_x = params.router_x = scratch_.normed;
      params.x = x();
      params.norm = {};
      if (!transformed && RouterTakes(params)) return Router(context_, params);
    }
    if (gated) RunLinear(sizes, x(), p_.shared_gate, nullptr, scratch_.shared_logits);
    RunLinear(sizes, router_x, p_.router, p_.router_bias, scratch_.logits);
  }

  Routing RoutingOfTokens() const {
    Routing routing = p_.routing;
    if (routing.even_keys != nullptr) routing.even_keys += first_;
    return routing;
  }

  RouteParams RouteOf() const {
    return {.logits = scratch_.logits,
            .shared_logits = p_.shared_gate != nullptr ? scratch_.shared_logits : nullptr,
            .t = t_,
            .routing = RoutingOfTokens(),
            .weight_on_input = p_.weight_on_input,
            .experts = prepared_.experts(),
            .held = prepared_.held(),
            .shared = shared_.expert,
            .f = static_cast<int32_t>(p_.f),
            .shared_f = static_cast<int32_t>(p_.shared_f),
            .gate_up = SplitOf(gate_up_),
            .down = SplitOf(down_),
            .group_rows = group_rows_,
            .lists = scratch_.lists,
            .chosen = scratch_.chosen,
            .chosen_weight = scratch_.chosen_weight};
  }

  // Routed experts, whose rows come first, then the shared one's, and the sum.
  void RunW4a4(const MoeSizes& sizes) const {
    w4a4::RunExperts(context_, {.lists = scratch_.lists,
                                .max_groups = max_groups_,
                                .input_scales = prepared_.input_scales(),
                                .transforms = prepared_.transforms(),
                                .gate_up = prepared_.gate_up().like,
                                .down = prepared_.down().like,
                                .x = x(),
                                .d = static_cast<int32_t>(p_.d),
                                .f = static_cast<int32_t>(p_.f),
                                .activation = p_.activation,
                                .scale_by_weight = p_.weight_on_input,
                                .hidden = scratch_.hidden,
                                .y = scratch_.y,
                                .pieces = scratch_.pieces});
    if (has_shared()) RunSharedApart(sizes);
    Sum();
  }

  // The shared expert by linears of its own, each in W4A4 if it can.
  void RunSharedApart(const MoeSizes& sizes) const {
    OpContext context = context_;
    context.workspace = scratch_.linear;
    context.workspace_bytes = LinearBytes(sizes);
    const int64_t f = p_.shared_f, inputs = p_.activation.inputs(f);
    const auto linear = [&](const LinearParams& params) {
      (params.weight->input_scale() > 0.0f ? LinearW4a4 : Linear)(context, params);
    };
    const float* const bias = p_.shared.gate_up_bias;
    linear({.x = x(),
            .x_stride = p_.d,
            .weight = p_.shared.gate_up,
            .bias = bias,
            .y = scratch_.hidden,
            .y_stride = inputs,
            .m = t_});
    if (p_.shared.up != nullptr) {
      linear({.x = x(),
              .x_stride = p_.d,
              .weight = p_.shared.up,
              .bias = bias == nullptr ? nullptr : bias + f,
              .y = scratch_.hidden + f,
              .y_stride = inputs,
              .m = t_});
    }
    ApplyActivation(context, {.gate_up = scratch_.hidden,
                              .out = scratch_.h,
                              .t = t_,
                              .f = f,
                              .activation = p_.activation});
    linear({.x = scratch_.h,
            .x_stride = f,
            .weight = p_.shared.down,
            .bias = p_.shared.down_bias,
            .y_f32 = scratch_.y + t_ * p_.routing.top_k * p_.d,
            .y_stride = p_.d,
            .m = t_});
  }

  void RunGateUp() const {
    if (gathers_x_) {
      GatherInput(Input::kGateUp, x(), p_.d, p_.d, p_.d, scratch_.gathered_x, x_stride());
      if (transforms_x_)
        GatherInput(Input::kUp, x(), p_.d, p_.d, p_.d, scratch_.gathered_x_up, x_stride());
    }
    RunPhase(context_, gate_up_);
  }

  void RunDown() const {
    if (transforms_h_)
      GatherInput(Input::kDown, scratch_.h, h_stride_, p_.f, p_.shared_f, scratch_.gathered_h,
                  h_stride_);
    RunPhase(context_, down_);
    Sum();
  }

  void Sum() const {
    SumRows(context_, {.lists = scratch_.lists,
                       .y = scratch_.y,
                       .y_stride = p_.d,
                       .top_k = p_.routing.top_k,
                       .t = t_,
                       .d = p_.d,
                       .out = out(),
                       .out_f32 = out_f32(),
                       .out_stride = p_.d,
                       .add = p_.add});
  }

  uint16_t* out() const { return p_.out == nullptr ? nullptr : p_.out + first_ * p_.d; }
  float* out_f32() const { return p_.out_f32 == nullptr ? nullptr : p_.out_f32 + first_ * p_.d; }

  int64_t x_stride() const { return RoundUp(p_.d, kTileColumns); }

  void GatherInput(Input input, const uint16_t* from, int64_t from_stride, int64_t k,
                   int64_t shared_k, uint16_t* out, int64_t stride) const {
    Gather(context_, {.lists = scratch_.lists,
                      .max_groups = max_groups_,
                      .input = input,
                      .from = from,
                      .from_stride = from_stride,
                      .k = static_cast<int32_t>(k),
                      .shared_k = static_cast<int32_t>(shared_k),
                      .scale_by_weight = p_.weight_on_input && input != Input::kDown,
                      .experts = p_.routing.experts,
                      .transforms = prepared_.transforms(),
                      .shared_transforms = shared_.transforms,
                      .out = out,
                      .stride = stride});
  }

  PhaseParams GateUpOf() const {
    const int64_t shared_f = has_shared() ? p_.shared_f : 0;
    PhaseParams params = {
        .phase = Phase::kGateUp,
        .lists = scratch_.lists,
        .x = x(),
        .x_stride = p_.d,
        .x_up = x(),
        .h = scratch_.h,
        .h_stride = h_stride_,
        .outputs = static_cast<int32_t>(p_.f),
        .shared_outputs = static_cast<int32_t>(shared_f),
        .straddles = p_.f % kTileRows != 0 || shared_f % kTileRows != 0,
        .activation = p_.activation,
        .t = t_,
        .max_groups = max_groups_,
        .group_rows = group_rows_,
        .routed = prepared_.gate_up(),
        .shared = shared_gate_up_,
    };
    if (gathers_x_) {
      params.by_row = true;
      params.x = scratch_.gathered_x;
      params.x_up = transforms_x_ ? scratch_.gathered_x_up : scratch_.gathered_x;
      params.x_stride = x_stride();
    }
    return params;
  }

  const uint16_t* down_input() const { return transforms_h_ ? scratch_.gathered_h : scratch_.h; }

  PhaseParams DownOf() const {
    return {.phase = Phase::kDown,
            .lists = scratch_.lists,
            .x = down_input(),
            .x_stride = h_stride_,
            .by_row = true,
            .x_up = down_input(),
            .y = scratch_.y,
            .outputs = static_cast<int32_t>(p_.d),
            .shared_outputs = has_shared() ? static_cast<int32_t>(p_.d) : 0,
            .t = t_,
            .max_groups = max_groups_,
            .group_rows = group_rows_,
            .routed = prepared_.down(),
            .shared = shared_down_};
  }

  FewSets FewSetsOf() const {
    return {.gate_up = prepared_.gate_up(),
            .down = prepared_.down(),
            .shared_gate_up = shared_gate_up_,
            .shared_down = shared_down_,
            .stacked = prepared_.stacked() && p_.shared.up == nullptr,
            .all_held = prepared_.all_held()};
  }

  FewParams FewOf() const {
    return {.logits = scratch_.logits,
            .shared_logits = p_.shared_gate != nullptr ? scratch_.shared_logits : nullptr,
            .routing = RoutingOfTokens(),
            .t = static_cast<int32_t>(t_),
            .d = static_cast<int32_t>(p_.d),
            .f = static_cast<int32_t>(p_.f),
            .shared_f = has_shared() ? static_cast<int32_t>(p_.shared_f) : 0,
            .gate_up = prepared_.gate_up_data(),
            .down = prepared_.down_data(),
            .experts = prepared_.experts(),
            .x = x(),
            .h = scratch_.h,
            .h_stride = h_stride_,
            .out = out(),
            .out_f32 = out_f32(),
            .add = p_.add,
            .biased = prepared_.biased() || shared_.expert.gate_bias != nullptr ||
                      shared_.expert.down_bias != nullptr,
            .activation = p_.activation,
            .shared = shared_.expert,
            .chosen = scratch_.chosen,
            .chosen_weight = scratch_.chosen_weight};
  }

  // But for the workspace.
  GroupedParams GroupedOf(int64_t t) const {
    const bool shared = has_shared();
    return {.lists = scratch_.lists,
            .experts = prepared_.experts(),
            .shared = shared_.expert,
            .shared_gate_up = shared ? AsCuda(*p_.shared.gate_up).tiles() : WeightTiles{},
            .shared_down = shared ? AsCuda(*p_.shared.down).tiles() : WeightTiles{},
            .expert_count = p_.routing.experts,
            .top_k = p_.routing.top_k,
            .t = t,
            .x = x(),
            .d = p_.d,
            .f = p_.f,
            .shared_f = shared ? p_.shared_f : 0,
            .activation = p_.activation,
            .gate_up = prepared_.gate_up(),
            .down = prepared_.down(),
            .out = out(),
            .out_f32 = out_f32(),
            .add = p_.add,
            .h = scratch_.h,
            .h_stride = h_stride_};
  }

  void Tell() const {
    TellListener(context_, {.listener = p_.listener,
                            .lists = scratch_.lists,
                            .experts = p_.routing.experts,
                            .t = t_,
                            .x = x(),
                            .d = p_.d,
                            .weight_on_input = p_.weight_on_input,
                            .h = scratch_.h,
                            .h_stride = h_stride_,
                            .f = p_.f,
                            .shared_f = p_.shared_f});
  }

  const OpContext& context_;
  const MoeParams& p_;
  const MoePhases phases_;
  const PreparedExperts& prepared_;
  const bool w4a4_;
  const ExpertFacts shared_;
  const bool transforms_x_;
  const bool transforms_h_;
  WeightSet shared_gate_up_, shared_down_;
  bool gathers_x_ = false;
  // Of the tokens under way.
  int64_t first_ = 0;
  int64_t t_ = 0;
  Scratch scratch_;
  int64_t h_stride_ = 0;
  int32_t group_rows_ = 8;
  int64_t max_groups_ = 0;
  PhaseParams gate_up_;
  PhaseParams down_;
};

}  // namespace

Result<std::unique_ptr<PreparedWeights>> PrepareExperts(std::span<const ExpertWeights> experts) {
  int index = 0;
  cudaGetDevice(&index);
  NIBBLE_ASSIGN(Device * device, CudaDevice(index));
  NIBBLE_ASSIGN(std::unique_ptr<PreparedExperts> prepared,
                PreparedExperts::Create(experts, *device));
  return std::unique_ptr<PreparedWeights>(std::move(prepared));
}

size_t MoeWorkspace(int /*threads*/, const MoeSizes& sizes) {
  MoeSizes chunk = sizes;
  chunk.t = std::min(sizes.t, kMaxTokens);
  Scratch ignored;
  return static_cast<size_t>(Carve(nullptr, chunk, &ignored));
}

void Moe(const OpContext& context, const MoeParams& params) { RunMoePhases(context, params, {}); }

void RunMoePhases(const OpContext& context, const MoeParams& params, const MoePhases& phases) {
  NIBBLE_CHECK(params.prepared != nullptr, "experts without their prepared table");
  MoeRun(context, params, phases).Run();
}

}  // namespace nibble::kernels::cuda
