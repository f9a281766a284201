#include "models/layers/ffn.h"

#include <algorithm>
#include <utility>

namespace nibble::models {

FeedForward::FeedForward(FeedForwardConfig config, std::string prefix, const TensorParallel& tp)
    : config_(config), prefix_(std::move(prefix)), tp_(tp), share_(tp.Share(config.ffn_size)) {
  gate_up_.is_gate_up = config_.activation.gated();
}

std::vector<LinearPart> FeedForward::InputParts() const {
  const int64_t f = config_.ffn_size;
  const auto rows = [&](int64_t offset) {
    if (!tp_.active()) return std::vector<RowRange>();
    return std::vector<RowRange>{{.begin = offset + share_.begin, .count = share_.count}};
  };
  const LinearPart up = {prefix_ + ".up_proj", f, rows(0)};
  if (!config_.activation.gated()) return {up};
  if (!config_.fused_gate_up) return {{prefix_ + ".gate_proj", f, rows(0)}, up};
  std::vector<RowRange> both = rows(0);
  if (tp_.active()) both.push_back(rows(f)[0]);
  return {{prefix_ + ".gate_up_proj", 2 * f, both}};
}

void FeedForward::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(config_.section);
  const ColumnRange columns =
      tp_.active() ? ColumnRange{share_.begin, share_.count} : ColumnRange{};
  visitor.VisitLinear(InputParts(), config_.hidden_size, Bias::kIfStored, &gate_up_);
  visitor.VisitLinear({{prefix_ + ".down_proj", config_.hidden_size}}, config_.ffn_size,
                      Bias::kIfStored, &down_, columns);
}

Status FeedForward::FinishLoad(const FinishContext&) {
  if (tp_.rank > 0) down_.bias.clear();  // added once
  return {};
}

void FeedForward::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  size_t workspace = sizes.LinearWorkspace(ops, std::max(config_.hidden_size, share_.count));
  if (gate_up_.activates()) {
    workspace += ops.activated_workspace(sizes.t, share_.count);
  } else {
    arena.Take(&hidden_, sizes.t * config_.activation.inputs(share_.count));
  }
  arena.Take(&activated_, sizes.LaidOutTokens(ops) * share_.count);
  if (tp_.active()) arena.Take(&partial_, sizes.t * config_.hidden_size);
  arena.NeedWorkspace(workspace);
}

void FeedForward::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  kernels::ActivationLayout layout;
  if (gate_up_.activates()) {
    layout = down_.XLayout(step);
    gate_up_.RunActivated(step, in, config_.activation, activated_, layout);
  } else {
    gate_up_.Run(step, in, {hidden_});
    step.ops.activation(step.context, {.gate_up = hidden_,
                                       .out = activated_,
                                       .t = step.t,
                                       .f = share_.count,
                                       .activation = config_.activation});
  }
  step.RunReduced(down_, {.x = activated_, .layout = layout}, partial_, out);
}

}  // namespace nibble::models
