// The feed-forward block: down(activation(gate x, up x)), or down(activation(up x)) without a gate.
#pragma once

#include <cstdint>
#include <string>

#include "models/layers/block.h"

namespace nibble::models {

struct FeedForwardConfig {
  int64_t hidden_size = 0;  // D
  int64_t ffn_size = 0;     // F
  kernels::Activation activation;
  bool fused_gate_up = false;  // stored as one "gate_up_proj", gate rows first
  Section section = Section::kFfn;
};

class FeedForward final : public Block {
 public:
  // prefix: "model.layers.0.mlp".
  FeedForward(FeedForwardConfig config, std::string prefix, const TensorParallel& tp);

  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override { return {"linear", "activation"}; }
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  std::vector<LinearPart> InputParts() const;

  const FeedForwardConfig config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange share_;  // of F

  Linear gate_up_;  // (2F or F of this rank, D): gate rows, then up rows
  Linear down_;     // (D, F of this rank)

  uint16_t* hidden_ = nullptr;     // (T, 2F or F), where gate_up_ does not activate
  uint16_t* activated_ = nullptr;  // (T, F), as down_ reads it best
  float* partial_ = nullptr;       // (T, D)
};

}  // namespace nibble::models
