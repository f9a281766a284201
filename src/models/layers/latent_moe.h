// Experts that work in a latent space narrower than the residual stream:
//
//   y = up(Σ of weight * expert(down x)) + shared(x)
//
// with a router and a shared expert that see x itself. Nemotron 3's larger models; names below the
// prefix are those of Moe, "fc1_latent_proj" (down) and "fc2_latent_proj" (up). With more than one
// rank the two projections are on every rank.
#pragma once

#include <cstdint>
#include <string>

#include "models/layers/ffn.h"
#include "models/layers/moe.h"

namespace nibble::models {

class LatentMoe final : public Block {
 public:
  // config as for Moe, hidden_size that of the residual stream.
  LatentMoe(const MoeConfig& config, int64_t latent_size, const std::string& prefix,
            const TensorParallel& tp);

  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override;
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  const std::string prefix_;
  const int64_t hidden_size_;  // D
  const int64_t latent_size_;  // L
  Moe experts_;                // (L → L), routed by (T, D)
  FeedForward shared_;         // (D → D)
  Linear down_;                // (L, D)
  Linear up_;                  // (D, L)

  uint16_t* latent_ = nullptr;  // (T, L)
  uint16_t* routed_ = nullptr;  // (T, L)
  uint16_t* sum_ = nullptr;     // (T, D)
};

}  // namespace nibble::models
