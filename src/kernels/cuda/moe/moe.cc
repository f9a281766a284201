#include "kernels/cuda/moe/moe.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/gather.h"
#include "kernels/cuda/moe/grouped.h"
#include "kernels/cuda/moe/listen.h"
#include "kernels/cuda/moe/prepared_experts.h"
#include "kernels/cuda/moe/route.h"

namespace nibble::kernels::cuda {
namespace {

using namespace moe;

// Tokens of one chain of launches: bounds the workspace.
constexpr int64_t kMaxTokens = 4096;

// Rows whose inputs are gathered at a time, where that is needed.
constexpr int64_t kGatheredRows = 768;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t GatheredTokens(int64_t t, int32_t top_k) {
  return std::min(t, std::max<int64_t>(1, kGatheredRows / (top_k + 1)));
}

struct Scratch {
  float* logits = nullptr;         // (T, E)
  float* shared_logits = nullptr;  // (T)
  Lists lists;
  int32_t* chosen = nullptr;
  float* chosen_weight = nullptr;
  uint8_t* block_counts = nullptr;
  uint16_t* h = nullptr;           // (rows, F rounded up)
  float* sums = nullptr;           // (T, D)
  uint16_t* gathered_x = nullptr;  // (gathered rows, D rounded up)
  uint16_t* gathered_x_up = nullptr;
  uint16_t* gathered_h = nullptr;  // (gathered rows, F rounded up)
  std::byte* linear = nullptr;
  std::byte* grouped = nullptr;
};

size_t LinearBytes(const MoeSizes& s) { return LinearWorkspace(s.t, std::max(s.d, s.router_d)); }

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
  take(&out->logits, s.t * s.experts);
  take(&out->shared_logits, s.t);
  take(&out->lists.counts, 1);
  take(&out->lists.first_row, s.experts + 2);
  take(&out->lists.groups, MaxGroups(s.t, s.experts, s.top_k, true, 8));
  take(&out->lists.row_token, rows);
  take(&out->lists.row_weight, rows);
  take(&out->lists.places, rows);
  take(&out->chosen, routed_rows);
  take(&out->chosen_weight, routed_rows);
  take(&out->block_counts, (s.t + kTokensOfBlock - 1) / kTokensOfBlock * s.experts);
  take(&out->h, rows * h_stride);
  take(&out->sums, s.t > kTokensInRegisters ? s.t * s.d : 0);
  take(&out->gathered_x, gathered * x_stride);
  take(&out->gathered_x_up, gathered * x_stride);
  take(&out->gathered_h, gathered * h_stride);
  take(&out->linear, static_cast<int64_t>(LinearBytes(s)));
  take(&out->grouped, GroupedBytes(s));
  return used;
}

class MoeRun {
 public:
  MoeRun(const OpContext& context, const MoeParams& params, const MoePhases& phases)
      : context_(context),
        p_(params),
        phases_(phases),
        prepared_(static_cast<const PreparedExperts&>(*params.prepared)),
        shared_(FactsOf(params.shared)),
        transforms_x_(prepared_.transforms_x() || shared_.transforms_x),
        transforms_h_(prepared_.transforms_h() || shared_.transforms_h) {
    AddTo(shared_.expert, &shared_gate_up_, &shared_down_);
  }

  void Run() {
    const bool aligned = p_.d % kTileColumns == 0 && reinterpret_cast<uintptr_t>(p_.x) % 16 == 0;
    gathers_x_ = transforms_x_ || p_.weight_on_input || !aligned;
    const int64_t most = std::min(p_.t, kMaxTokens);
    const int64_t tokens =
        gathers_x_ || transforms_h_ ? GatheredTokens(most, p_.routing.top_k) : most;
    for (int64_t first = 0; first < p_.t; first += tokens)
      RunTokens(first, std::min(tokens, p_.t - first));
  }

 private:
  void RunTokens(int64_t first, int64_t t) {
    first_ = first, t_ = t;
    const MoeSizes sizes = {.t = t,
                            .d = p_.d,
                            .f = std::max(p_.f, p_.shared_f),
                            .router_d = p_.router_x != nullptr ? p_.router->k() : 0,
                            .experts = p_.routing.experts,
                            .top_k = p_.routing.top_k};
    const int64_t needed = Carve(context_.workspace, sizes, &scratch_);
    NIBBLE_CHECK(needed <= static_cast<int64_t>(context_.workspace_bytes),
                 "experts of {} tokens: workspace of {} bytes", t, context_.workspace_bytes);
    h_stride_ = RoundUp(sizes.f, kTileColumns);
    ChooseGroups();
    if (phases_.router) RunRouter(sizes);
    if (phases_.route) RunRoute();
    const GroupedParams grouped = GroupedOf(sizes);
    if (!gathers_x_ && !transforms_h_ && p_.listener == nullptr && GroupedTakes(grouped)) {
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
    group_rows_ = rows <= 5 ? 8 : rows <= 12 ? 16 : 32;
    const auto set = [&] {
      max_groups_ = MaxGroups(t_, p_.routing.experts, p_.routing.top_k, has_shared(), group_rows_);
      gate_up_ = GateUpOf();
      down_ = DownOf();
    };
    for (set(); group_rows_ > 8 && !(GateUpFits(gate_up_) && DownFits(down_)); set())
      group_rows_ /= 2;
  }

  bool has_shared() const { return p_.shared.gate_up != nullptr; }
  const uint16_t* x() const { return p_.x + first_ * p_.d; }

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

  void RunRouter(const MoeSizes& sizes) {
    const uint16_t* router_x = p_.router_x != nullptr ? p_.router_x + first_ * p_.router->k() : x();
    if (has_shared() && p_.shared_gate != nullptr)
      RunLinear(sizes, x(), p_.shared_gate, nullptr, scratch_.shared_logits);
    RunLinear(sizes, router_x, p_.router, p_.router_bias, scratch_.logits);
  }

  void RunRoute() const {
    Route(context_, {.logits = scratch_.logits,
                     .shared_logits = p_.shared_gate != nullptr ? scratch_.shared_logits : nullptr,
                     .t = t_,
                     .routing = p_.routing,
                     .weight_on_input = p_.weight_on_input,
                     .experts = prepared_.experts(),
                     .shared = shared_.expert,
                     .group_rows = group_rows_,
                     .lists = scratch_.lists,
                     .chosen = scratch_.chosen,
                     .chosen_weight = scratch_.chosen_weight,
                     .block_counts = scratch_.block_counts});
  }

  void RunGateUp() const {
    if (gathers_x_) {
      GatherInput(Input::kGateUp, x(), p_.d, p_.d, p_.d, scratch_.gathered_x, x_stride());
      if (transforms_x_)
        GatherInput(Input::kUp, x(), p_.d, p_.d, p_.d, scratch_.gathered_x_up, x_stride());
    }
    GateUp(context_, gate_up_);
  }

  void RunDown() const {
    if (transforms_h_)
      GatherInput(Input::kDown, scratch_.h, h_stride_, p_.f, p_.shared_f, scratch_.gathered_h,
                  h_stride_);
    Down(context_, down_);
  }

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

  GateUpParams GateUpOf() const {
    GateUpParams params = {.lists = scratch_.lists,
                           .x = x(),
                           .x_stride = p_.d,
                           .x_up = x(),
                           .h = scratch_.h,
                           .h_stride = h_stride_,
                           .experts = p_.routing.experts,
                           .f = static_cast<int32_t>(p_.f),
                           .shared_f = has_shared() ? static_cast<int32_t>(p_.shared_f) : 0,
                           .activation = p_.activation,
                           .t = t_,
                           .max_groups = max_groups_,
                           .group_rows = group_rows_,
                           .routed = prepared_.gate_up(),
                           .shared = shared_gate_up_};
    if (gathers_x_) {
      params.by_row = true;
      params.x = scratch_.gathered_x;
      params.x_up = transforms_x_ ? scratch_.gathered_x_up : scratch_.gathered_x;
      params.x_stride = x_stride();
    }
    return params;
  }

  DownParams DownOf() const {
    const int64_t first = first_ * p_.d;
    float* const out_f32 = p_.out_f32 != nullptr ? p_.out_f32 + first : nullptr;
    return {.lists = scratch_.lists,
            .h = transforms_h_ ? scratch_.gathered_h : scratch_.h,
            .h_stride = h_stride_,
            .top_k = p_.routing.top_k,
            .t = t_,
            .d = p_.d,
            .shared = has_shared(),
            .max_groups = max_groups_,
            .group_rows = group_rows_,
            .routed_set = prepared_.down(),
            .shared_set = shared_down_,
            .sums = out_f32 != nullptr ? out_f32 : scratch_.sums,
            .out = p_.out != nullptr ? p_.out + first : nullptr,
            .out_f32 = out_f32};
  }

  GroupedParams GroupedOf(const MoeSizes& sizes) const {
    const int64_t first = first_ * p_.d;
    return {.lists = scratch_.lists,
            .experts = prepared_.experts(),
            .shared = shared_.expert,
            .expert_count = p_.routing.experts,
            .top_k = p_.routing.top_k,
            .t = t_,
            .x = x(),
            .d = p_.d,
            .f = p_.f,
            .shared_f = has_shared() ? p_.shared_f : 0,
            .activation = p_.activation,
            .gate_up = prepared_.gate_up(),
            .down = prepared_.down(),
            .out = p_.out != nullptr ? p_.out + first : nullptr,
            .out_f32 = p_.out_f32 != nullptr ? p_.out_f32 + first : nullptr,
            .h = scratch_.h,
            .h_stride = h_stride_,
            .workspace = scratch_.grouped,
            .workspace_bytes = GroupedBytes(sizes)};
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
  GateUpParams gate_up_;
  DownParams down_;
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
