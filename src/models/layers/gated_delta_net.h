// Gated DeltaNet, the recurrent mixer of Qwen3-Next and Qwen3.5: projections around the op of the
// same name. Divided among ranks by key head; its value heads go with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/layers/block.h"

namespace nibble::models {

struct GatedDeltaNetConfig {
  int64_t hidden_size = 0;  // D
  int32_t k_heads = 0;      // Hk
  int32_t v_heads = 0;      // Hv, a multiple of Hk
  int32_t k_dim = 0;        // Dk
  int32_t v_dim = 0;        // Dv
  int32_t conv_width = 0;   // W
  float norm_eps = 1e-6f;
  bool sigmoid_gate = false;
  // Stored as "in_proj_qkvz" and "in_proj_ba", whose rows are grouped by key head; else as
  // "in_proj_qkv", "in_proj_z", "in_proj_b" and "in_proj_a" in plain order.
  bool grouped_projections = false;

  int64_t key_width() const { return int64_t{k_heads} * k_dim; }
  int64_t value_width() const { return int64_t{v_heads} * v_dim; }
  int64_t values_per_key() const { return v_heads / k_heads; }
};

class GatedDeltaNet final : public Block {
 public:
  // prefix: "model.layers.0.linear_attn".
  GatedDeltaNet(GatedDeltaNetConfig config, std::string prefix, const TensorParallel& tp);

  void DescribeCaches(ModelInfo* info) override;
  void VisitWeights(WeightVisitor& visitor) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override {
    return {"linear", "gated_delta_net"};
  }
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  std::vector<LinearPart> QkvzParts() const;
  std::vector<LinearPart> BaParts() const;
  int64_t KeyWidth() const { return keys_.count * config_.k_dim; }      // of this rank
  int64_t ValueWidth() const { return values_.count * config_.v_dim; }  // of this rank
  int64_t Channels() const { return 2 * KeyWidth() + ValueWidth(); }    // of this rank
  kernels::GatedDeltaNetParams Sizes(int64_t t) const;

  const GatedDeltaNetConfig config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange keys_;    // key heads of this rank
  const RowRange values_;  // value heads of this rank
  int64_t state_ = 0;      // index into ModelInfo.state

  Linear qkvz_;              // (q, k, v and z rows of this rank, D)
  Linear ba_;                // (b and a rows of this rank, D)
  Linear output_;            // (D, Hv * Dv of this rank)
  Resident<float> conv_;     // (C, W)
  Resident<float> a_log_;    // (Hv)
  Resident<float> dt_bias_;  // (Hv)
  Resident<float> norm_;     // (Dv)

  uint16_t* qkvz_out_ = nullptr;  // (T, C + Hv * Dv)
  float* ba_out_ = nullptr;       // (T, 2 Hv)
  uint16_t* mixed_ = nullptr;     // (T, Hv * Dv)
  float* partial_ = nullptr;      // (T, D)
};

}  // namespace nibble::models
