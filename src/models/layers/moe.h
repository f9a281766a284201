// A mixture of experts: a router, experts of which every token takes some, and often a shared
// expert that all take.
//
// With more than one rank the experts are divided among them, whole ones; the router is on every
// rank; the shared expert is divided like a feed-forward block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config_reader.h"
#include "models/layers/block.h"

namespace nibble::models {

// Names are those below the block's prefix.
struct MoeConfig {
  int64_t hidden_size = 0;  // D
  int64_t router_size = 0;  // what the router sees, where it is not D wide; 0: D
  int64_t expert_size = 0;  // F
  // Number of experts, how many a token takes and how; choice_bias is set by the block.
  kernels::Routing routing;
  std::string router = "gate";
  Bias router_bias = Bias::kNone;
  std::string choice_bias;  // "gate.e_score_correction_bias"; empty: none
  kernels::Activation activation;
  bool weight_on_input = false;
  std::string experts = "experts";
  formats::ExpertLayout layout;
  bool expert_bias = false;
  int64_t shared_size = 0;  // 0: no shared expert
  std::string shared = "shared_expert";
  std::string shared_gate;  // "shared_expert_gate"; empty: weight 1
};

class Moe final : public Block {
 public:
  // prefix: "model.layers.0.mlp".
  Moe(MoeConfig config, std::string prefix, const TensorParallel& tp);

  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override { return {"moe"}; }
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;
  // The same for experts that see x (T, D), chosen by another input, (T, router_size).
  void ForwardRoutedBy(const StepContext& step, const LayerInput& router_in, const uint16_t* x,
                       const LayerOutput& out);

 private:
  class Listener;

  ExpertsSpec Experts() const;
  uint32_t EvenSalt() const;
  void VisitShared(WeightVisitor& visitor);

  const MoeConfig config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange expert_share_;
  const RowRange shared_share_;  // of the shared expert's F

  Linear router_;                                       // (E, D)
  Resident<float> choice_bias_;                         // (E) or empty
  std::vector<Expert> experts_;                         // of this rank
  Linear shared_gate_up_;                               // (2F or F of this rank, D)
  Linear shared_down_;                                  // (D, F of this rank)
  Linear shared_gate_;                                  // (1, D)
  std::vector<kernels::ExpertWeights> table_;           // (E)
  std::unique_ptr<kernels::PreparedWeights> prepared_;  // of table_
  kernels::ExpertWeights shared_;

  float* partial_ = nullptr;  // (T, D)
};

// Experts per token within the number of experts, groups that divide it and hold enough.
void RequireRouting(ConfigReader& config, const kernels::Routing& routing);

// What divides among ranks: experts and the shared expert's rows.
Status CheckShares(const TensorParallel& tp, const MoeConfig& moe);

}  // namespace nibble::models
