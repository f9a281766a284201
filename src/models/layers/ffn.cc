#include "models/layers/ffn.h"

namespace nibble::models {

void GatedFfn::VisitWeights(WeightVisitor& visitor, const std::string& prefix, int64_t d,
                            int64_t f) {
  visitor.VisitLinear({{prefix + ".gate_proj", f}, {prefix + ".up_proj", f}}, d, Bias::kIfStored,
                      &gate_up_);
  visitor.VisitLinear({{prefix + ".down_proj", d}}, f, Bias::kIfStored, &down_);
}

void GatedFfn::Forward(const kernels::OpTable& ops, int64_t t, Activations& a) const {
  gate_up_.Run(ops, a.context, a.normed, t, a.gate_up);
  ops.swiglu(a.context, {.gate_up = a.gate_up, .out = a.ffn, .t = t, .f = down_.k});
  down_.Run(ops, a.context, a.ffn, t, a.delta);
}

}  // namespace nibble::models
