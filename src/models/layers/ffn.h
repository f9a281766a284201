// The gated feed-forward block: down(silu(gate x) * up x).
#pragma once

#include <cstdint>
#include <string>

#include "models/layers/activations.h"
#include "models/weights.h"

namespace nibble::models {

class GatedFfn {
 public:
  // prefix: "model.layers.0.mlp".
  void VisitWeights(WeightVisitor& visitor, const std::string& prefix, int64_t d, int64_t f);

  // a.normed (T, D) → a.delta (T, D).
  void Forward(const kernels::OpTable& ops, int64_t t, Activations& a) const;

 private:
  Linear gate_up_;  // (2F, D): gate rows, then up rows
  Linear down_;     // (D, F)
};

}  // namespace nibble::models
