#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ref/recurrent.h"
#include "kernels/ref/ref.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {
namespace {

class Sequence {
 public:
  Sequence(const GatedDeltaNetParams& p, int64_t b)
      : p_(p),
        first_(p.sequences.q_start[b]),
        count_(p.sequences.q_start[b + 1] - first_),
        key_width_(int64_t{p.k_heads} * p.k_dim),
        channels_(2 * key_width_ + int64_t{p.v_heads} * p.v_dim),
        window_(StateOf<uint16_t>(p.conv_state, p.sequences, b, (p.conv_width - 1) * channels_)),
        state_(StateOf<float>(p.recurrent_state, p.sequences, b,
                              int64_t{p.v_heads} * p.v_dim * p.k_dim)) {}

  void Run() {
    for (int64_t t = first_; t < first_ + count_; ++t) {
      const std::vector<double> mixed = ConvolveToken(
          p_.conv_weight, nullptr, p_.conv_width, channels_, p_.qkv + t * p_.qkv_stride, window_);
      for (int32_t head = 0; head < p_.v_heads; ++head) RunHead(t, head, mixed);
    }
  }

 private:
  std::vector<double> Unit(const double* x, double scale) const {
    double squares = 0;
    for (int32_t i = 0; i < p_.k_dim; ++i) squares += x[i] * x[i];
    std::vector<double> unit(x, x + p_.k_dim);
    for (double& value : unit) value *= scale / std::sqrt(squares + 1e-6);
    return unit;
  }

  void RunHead(int64_t t, int32_t head, const std::vector<double>& mixed) {
    const int64_t key_head = head / (p_.v_heads / p_.k_heads);
    const std::vector<double> q =
        Unit(&mixed[key_head * p_.k_dim], 1.0 / std::sqrt(static_cast<double>(p_.k_dim)));
    const std::vector<double> k = Unit(&mixed[key_width_ + key_head * p_.k_dim], 1.0);
    const double* v = &mixed[2 * key_width_ + int64_t{head} * p_.v_dim];
    const double beta = Sigmoid(p_.b[t * p_.ba_stride + head]);
    const double g = -std::exp(double{p_.a_log[head]}) *
                     Softplus(double{p_.a[t * p_.ba_stride + head]} + p_.dt_bias[head]);
    std::vector<double> o(p_.v_dim);
    GatedDeltaStep(q.data(), k.data(), v, std::exp(g), beta, p_.v_dim, p_.k_dim,
                   state_ + int64_t{head} * p_.v_dim * p_.k_dim, o.data());

    double squares = 0;
    for (const double x : o) squares += x * x;
    const double inverse = 1.0 / std::sqrt(squares / p_.v_dim + p_.eps);
    const uint16_t* z = p_.z + t * p_.z_stride + int64_t{head} * p_.v_dim;
    uint16_t* out = p_.out + (t * p_.v_heads + head) * p_.v_dim;
    for (int32_t i = 0; i < p_.v_dim; ++i) {
      const double gate = Bf16ToFloat(z[i]);
      const double gated = p_.sigmoid_gate ? Sigmoid(gate) : Silu(gate);
      out[i] = Bf16FromFloat(static_cast<float>(p_.norm_weight[i] * o[i] * inverse * gated));
    }
  }

  const GatedDeltaNetParams& p_;
  const int64_t first_;
  const int64_t count_;
  const int64_t key_width_;
  const int64_t channels_;
  uint16_t* window_;  // (W - 1, C)
  float* state_;      // (Hv, Dv, Dk)
};

}  // namespace

void GatedDeltaStep(const double* q, const double* k, const double* v, double decay, double beta,
                    int64_t v_dim, int64_t k_dim, float* state, double* o) {
  for (int64_t row = 0; row < v_dim; ++row) {
    float* s = state + row * k_dim;
    double recalled = 0;
    for (int64_t i = 0; i < k_dim; ++i) recalled += decay * s[i] * k[i];
    const double delta = beta * (v[row] - recalled);
    o[row] = 0;
    for (int64_t i = 0; i < k_dim; ++i) {
      const double updated = decay * s[i] + delta * k[i];
      o[row] += updated * q[i];
      s[i] = static_cast<float>(updated);
    }
  }
}

void GatedDeltaNet(const OpContext&, const GatedDeltaNetParams& params) {
  for (int64_t b = 0; b < params.sequences.count; ++b) Sequence(params, b).Run();
}

}  // namespace nibble::kernels::ref
