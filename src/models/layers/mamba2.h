// Mamba-2, the recurrent mixer of Nemotron-H: projections around the op of the same name. Divided
// among ranks by group; its heads go with it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "models/layers/block.h"

namespace nibble::models {

struct Mamba2Config {
  int64_t hidden_size = 0;  // D
  int32_t heads = 0;        // H
  int32_t head_dim = 0;     // P
  int32_t groups = 0;       // G, divides H
  int32_t state_dim = 0;    // N
  int32_t conv_width = 0;   // W
  bool conv_bias = true;
  float norm_eps = 1e-5f;
  float dt_min = 0.0f;
  float dt_max = std::numeric_limits<float>::max();

  int64_t width() const { return int64_t{heads} * head_dim; }
  int64_t bc_width() const { return int64_t{groups} * state_dim; }
};

class Mamba2 final : public Block {
 public:
  // prefix: "backbone.layers.0.mixer".
  Mamba2(Mamba2Config config, std::string prefix, const TensorParallel& tp);

  void DescribeCaches(ModelInfo* info) override;
  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override { return {"linear", "mamba2"}; }
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  std::vector<RowRange> ConvChannels() const;
  int64_t Width() const { return heads_.count * config_.head_dim; }  // of this rank
  int64_t Channels() const { return Width() + 2 * groups_.count * config_.state_dim; }  // the same
  kernels::Mamba2Params Sizes(int64_t t) const;

  const Mamba2Config config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange groups_;  // of this rank
  const RowRange heads_;   // of this rank
  int64_t state_ = 0;      // index into ModelInfo.state

  Linear input_;                 // (z, x, B, C and dt rows of this rank, D)
  Linear output_;                // (D, H P of this rank)
  Resident<float> conv_weight_;  // (x, B and C channels of this rank, W)
  Resident<float> conv_bias_;    // (the same channels) or empty
  Resident<float> a_log_;        // (H of this rank)
  Resident<float> dt_bias_;      // (H of this rank)
  Resident<float> d_;            // (H of this rank)
  Resident<float> norm_;         // (H P of this rank)

  uint16_t* zxbcdt_ = nullptr;  // (T, input_.n)
  uint16_t* mixed_ = nullptr;   // (T, H P)
  float* partial_ = nullptr;    // (T, D)
};

// What divides among ranks: groups.
Status CheckShares(const TensorParallel& tp, const Mamba2Config& mamba);

}  // namespace nibble::models
