#include "models/layers/moe.h"

#include <algorithm>
#include <utility>

namespace nibble::models {

// Hands the inputs that the op reports to the observer of the expert's linears.
class Moe::Listener final : public kernels::MoeListener {
 public:
  explicit Listener(const Moe& moe) : moe_(moe) {}

  void OnExpertInput(int32_t expert, bool down, const uint16_t* x, int64_t m, int64_t) override {
    if (expert == kShared) return (down ? moe_.shared_down_ : moe_.shared_gate_up_).Observe(x, m);
    const Expert& held = moe_.experts_[expert - moe_.expert_share_.begin];
    (down ? held.down : held.gate_up).Observe(x, m);
  }

 private:
  const Moe& moe_;
};

Moe::Moe(MoeConfig config, std::string prefix, const TensorParallel& tp)
    : config_(std::move(config)),
      prefix_(std::move(prefix)),
      tp_(tp),
      expert_share_(tp.Share(config_.routing.experts)),
      shared_share_(tp.Share(config_.shared_size)) {}

ExpertsSpec Moe::Experts() const {
  return {.prefix = prefix_ + "." + config_.experts,
          .experts = config_.routing.experts,
          .first = expert_share_.begin,
          .count = expert_share_.count,
          .top_k = config_.routing.top_k,
          .d = config_.hidden_size,
          .f = config_.expert_size,
          .gated = config_.activation.gated(),
          .bias = config_.expert_bias,
          .layout = config_.layout};
}

void Moe::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(Section::kOther);
  const int64_t router_size = config_.router_size > 0 ? config_.router_size : config_.hidden_size;
  visitor.VisitRouter(prefix_ + "." + config_.router, config_.routing.experts, router_size,
                      config_.router_bias, &router_);
  if (!config_.choice_bias.empty()) {
    visitor.VisitVector(prefix_ + "." + config_.choice_bias, config_.routing.experts,
                        &choice_bias_);
  }
  visitor.SetSection(Section::kExperts);
  visitor.VisitExperts(Experts(), &experts_);
  if (config_.shared_size > 0) VisitShared(visitor);
}

void Moe::VisitShared(WeightVisitor& visitor) {
  const std::string prefix = prefix_ + "." + config_.shared;
  const int64_t f = config_.shared_size;
  const auto rows = tp_.active() ? std::vector<RowRange>{shared_share_} : std::vector<RowRange>();
  const auto columns =
      tp_.active() ? ColumnRange{shared_share_.begin, shared_share_.count} : ColumnRange{};
  std::vector<LinearPart> inputs = {{prefix + ".up_proj", f, rows}};
  if (config_.activation.gated()) inputs.insert(inputs.begin(), {prefix + ".gate_proj", f, rows});
  visitor.SetSection(Section::kSharedExpert);
  visitor.VisitLinear(inputs, config_.hidden_size, Bias::kIfStored, &shared_gate_up_);
  visitor.VisitLinear({{prefix + ".down_proj", config_.hidden_size}}, f, Bias::kIfStored,
                      &shared_down_, columns);
  if (config_.shared_gate.empty()) return;
  visitor.VisitRouter(prefix_ + "." + config_.shared_gate, 1, config_.hidden_size, Bias::kNone,
                      &shared_gate_);
}

// Of the layer: a hash of its name (FNV-1a).
uint32_t Moe::EvenSalt() const {
  uint32_t hash = 2166136261u;
  for (const char c : prefix_) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
  return hash;
}

Status Moe::FinishLoad(const FinishContext& context) {
  context.info->expert_layers.push_back({.experts = config_.routing.experts,
                                         .top_k = config_.routing.top_k,
                                         .even_salt = EvenSalt()});
  table_ = ExpertTable(Experts(), experts_);
  if (context.ops.prepare_experts != nullptr) {
    NIBBLE_ASSIGN(prepared_, context.ops.prepare_experts(table_));
  }
  if (config_.shared_size == 0) return {};
  if (tp_.rank > 0) shared_down_.bias.clear();  // added once
  shared_ = ExpertOf(shared_gate_up_, shared_down_);
  return {};
}

void Moe::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  if (tp_.active()) arena.Take(&partial_, sizes.t * config_.hidden_size);
  arena.NeedWorkspace(
      ops.moe_workspace(sizes.threads, {.t = sizes.t,
                                        .d = config_.hidden_size,
                                        .f = std::max(config_.expert_size, shared_share_.count),
                                        .router_d = config_.router_size,
                                        .experts = config_.routing.experts,
                                        .top_k = config_.routing.top_k,
                                        .w4a4 = sizes.prompt_forms.w4a4 && ops.moe_w4a4}));
}

void Moe::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  ForwardRoutedBy(step, in, in.x, out);
}

// The rows of `run` alone, by their role.
static kernels::MoeParams OfRun(kernels::MoeParams params, const RowRun& run) {
  params.x += run.first * params.d;
  if (params.router_x != nullptr) params.router_x += run.first * params.router->k();
  if (params.routing.even_keys != nullptr) params.routing.even_keys += run.first;
  if (params.out != nullptr) params.out += run.first * params.d;
  if (params.out_f32 != nullptr) params.out_f32 += run.first * params.d;
  params.t = run.count;
  params.w4a4 = run.prompt;
  return params;
}

void Moe::ForwardRoutedBy(const StepContext& step, const LayerInput& router_in, const uint16_t* x,
                          const LayerOutput& out) {
  kernels::Routing routing = config_.routing;
  routing.choice_bias = choice_bias_.empty() ? nullptr : choice_bias_.data();
  if (!step.batch.even_keys.empty()) {
    routing.even_keys = step.batch.even_keys.data();
    routing.even_salt = EvenSalt();
  }
  router_.Observe(step.ops, step.context, router_in, step.t);
  shared_gate_.Observe(step.ops, step.context, router_in, step.t);
  Listener listener(*this);
  kernels::MoeParams params = {.x = x,
                               .norm = router_in.norm,
                               .t = step.t,
                               .d = config_.hidden_size,
                               .router_x = router_in.x != x ? router_in.x : nullptr,
                               .router = router_.segments[0].weight.get(),
                               .router_bias = router_.bias.empty() ? nullptr : router_.bias.data(),
                               .routing = routing,
                               .experts = table_,
                               .f = config_.expert_size,
                               .activation = config_.activation,
                               .weight_on_input = config_.weight_on_input,
                               .shared = shared_,
                               .shared_f = shared_share_.count,
                               .shared_gate = shared_gate_.segments.empty()
                                                  ? nullptr
                                                  : shared_gate_.segments[0].weight.get(),
                               .prepared = prepared_.get(),
                               .out = tp_.active() ? nullptr : out.y,
                               .out_f32 = tp_.active() ? partial_ : nullptr,
                               .add = out.add,
                               .listener = router_.observer != nullptr ? &listener : nullptr};
  if (!step.has_prompts() || !step.prompt_forms.w4a4 || !step.ops.moe_w4a4) {
    step.ops.moe(step.context, params);
  } else {
    for (const RowRun& run : step.runs) step.ops.moe(step.context, OfRun(params, run));
  }
  if (tp_.active()) step.Reduce(partial_, step.t * config_.hidden_size, out.y);
}

void RequireRouting(ConfigReader& config, const kernels::Routing& routing) {
  config.Require(routing.top_k <= routing.experts,
                 fmt::format("{} experts per token of {}", routing.top_k, routing.experts));
  config.Require(routing.experts % routing.groups == 0,
                 fmt::format("{} experts do not make {} groups", routing.experts, routing.groups));
  config.Require(
      routing.top_groups <= routing.groups &&
          routing.top_k <= routing.experts / routing.groups * routing.top_groups,
      fmt::format("{} of {} groups of {} experts do not hold {} per token", routing.top_groups,
                  routing.groups, routing.experts / routing.groups, routing.top_k));
}

Status CheckShares(const TensorParallel& tp, const MoeConfig& moe) {
  if (!tp.active()) return {};
  NIBBLE_TRY(TensorParallel::CheckDivides(tp.size, moe.routing.experts, "experts"));
  return TensorParallel::CheckDivides(tp.size, moe.shared_size, "shared expert size");
}

}  // namespace nibble::models
