#include "models/layers/latent_moe.h"

#include <algorithm>
#include <utility>

namespace nibble::models {
namespace {

MoeConfig LatentExperts(MoeConfig config, int64_t latent_size) {
  config.router_size = config.hidden_size;
  config.hidden_size = latent_size;
  config.shared_size = 0;
  return config;
}

FeedForwardConfig SharedExpert(const MoeConfig& config) {
  return {.hidden_size = config.hidden_size,
          .ffn_size = config.shared_size,
          .activation = config.activation,
          .section = Section::kSharedExpert};
}

}  // namespace

LatentMoe::LatentMoe(const MoeConfig& config, int64_t latent_size, const std::string& prefix,
                     const TensorParallel& tp)
    : prefix_(prefix),
      hidden_size_(config.hidden_size),
      latent_size_(latent_size),
      experts_(LatentExperts(config, latent_size), prefix, tp),
      shared_(SharedExpert(config), prefix + "." + config.shared, tp) {}

void LatentMoe::VisitWeights(WeightVisitor& visitor) {
  experts_.VisitWeights(visitor);
  shared_.VisitWeights(visitor);
  visitor.SetSection(Section::kSharedExpert);  // read for every token, too
  visitor.VisitLinear({{prefix_ + ".fc1_latent_proj", latent_size_}}, hidden_size_, Bias::kIfStored,
                      &down_);
  visitor.VisitLinear({{prefix_ + ".fc2_latent_proj", hidden_size_}}, latent_size_, Bias::kIfStored,
                      &up_);
}

Status LatentMoe::FinishLoad(const FinishContext& context) {
  NIBBLE_TRY(experts_.FinishLoad(context));
  return shared_.FinishLoad(context);
}

void LatentMoe::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  arena.Take(&latent_, sizes.t * latent_size_);
  arena.Take(&routed_, sizes.t * latent_size_);
  arena.Take(&sum_, sizes.t * hidden_size_);
  arena.NeedWorkspace(sizes.LinearWorkspace(ops, std::max(hidden_size_, latent_size_)));
  const int64_t mark = arena.mark();
  experts_.Carve(arena, ops, sizes);
  arena.Rewind(mark);
  shared_.Carve(arena, ops, sizes);
}

std::vector<std::string_view> LatentMoe::RequiredOps() const {
  std::vector<std::string_view> ops = {"linear", "add"};
  for (const std::string_view op : experts_.RequiredOps()) ops.push_back(op);
  for (const std::string_view op : shared_.RequiredOps()) ops.push_back(op);
  return ops;
}

void LatentMoe::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  down_.Run(step, in, {latent_});
  experts_.ForwardRoutedBy(step, in, latent_, {routed_});
  // The two parts are added up before they join the residual stream.
  uint16_t* sum = out.add ? sum_ : out.y;
  shared_.Forward(step, in, {sum});
  up_.Run(step, {routed_}, {sum, true});
  if (out.add)
    step.ops.add(step.context, {.x = out.y, .delta = sum, .t = step.t, .d = hidden_size_});
}

}  // namespace nibble::models
