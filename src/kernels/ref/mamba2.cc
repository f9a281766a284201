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
  Sequence(const Mamba2Params& p, int64_t b)
      : p_(p),
        first_(p.sequences.q_start[b]),
        count_(p.sequences.q_start[b + 1] - first_),
        width_(int64_t{p.heads} * p.head_dim),
        bc_(int64_t{p.groups} * p.state_dim),
        channels_(width_ + 2 * bc_),
        window_(StateOf<uint16_t>(p.conv_state, p.sequences, b, (p.conv_width - 1) * channels_)),
        state_(StateOf<float>(p.recurrent_state, p.sequences, b, width_ * p.state_dim)) {}

  void Run() {
    for (int64_t t = first_; t < first_ + count_; ++t) {
      const uint16_t* z = p_.zxbcdt + t * p_.stride;
      const uint16_t* dt = z + width_ + channels_;
      const std::vector<double> xbc = ConvolveToken(p_.conv_weight, p_.conv_bias, p_.conv_width,
                                                    channels_, z + width_, window_);
      std::vector<double> u(width_);
      for (int32_t head = 0; head < p_.heads; ++head) RunHead(head, xbc, dt[head], &u);
      for (int64_t i = 0; i < width_; ++i) u[i] *= Silu(Bf16ToFloat(z[i]));
      for (int32_t group = 0; group < p_.groups; ++group) Normalize(t, group, u);
    }
  }

 private:
  // y = S C + d x of one head, into its part of u.
  void RunHead(int64_t head, const std::vector<double>& xbc, uint16_t raw_dt,
               std::vector<double>* u) {
    const double* x = &xbc[head * p_.head_dim];
    const double* b = &xbc[width_ + head / (p_.heads / p_.groups) * p_.state_dim];
    const double* c = b + bc_;
    const double dt = std::clamp<double>(Softplus(double{Bf16ToFloat(raw_dt)} + p_.dt_bias[head]),
                                         p_.dt_min, p_.dt_max);
    const double decay = std::exp(-std::exp(double{p_.a_log[head]}) * dt);
    for (int64_t row = 0; row < p_.head_dim; ++row) {
      float* s = state_ + (head * p_.head_dim + row) * p_.state_dim;
      double y = p_.d[head] * x[row];
      for (int64_t i = 0; i < p_.state_dim; ++i) {
        const double updated = decay * s[i] + dt * x[row] * b[i];
        y += updated * c[i];
        s[i] = static_cast<float>(updated);
      }
      (*u)[head * p_.head_dim + row] = y;
    }
  }

  void Normalize(int64_t t, int64_t group, const std::vector<double>& u) {
    const int64_t size = width_ / p_.groups;
    double squares = 0;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) squares += u[i] * u[i];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(size) + p_.eps);
    for (int64_t i = group * size; i < (group + 1) * size; ++i)
      p_.out[t * width_ + i] =
          Bf16FromFloat(static_cast<float>(p_.norm_weight[i] * u[i] * inverse));
  }

  const Mamba2Params& p_;
  const int64_t first_;
  const int64_t count_;
  const int64_t width_;     // H P
  const int64_t bc_;        // G N
  const int64_t channels_;  // of the convolution
  uint16_t* window_;        // (W - 1, C)
  float* state_;            // (H, P, N)
};

}  // namespace

void Mamba2(const OpContext&, const Mamba2Params& params) {
  for (int64_t b = 0; b < params.sequences.count; ++b) Sequence(params, b).Run();
}

}  // namespace nibble::kernels::ref
