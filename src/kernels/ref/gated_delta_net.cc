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

  // `chunked` leading tokens by chunks, the others one by one.
  void Run(int64_t chunked) {
    for (int64_t t = 0; t < count_;) {
      const int64_t count = t < chunked ? kDeltaChunk : 1;
      RunTokens(first_ + t, count);
      t += count;
    }
  }

 private:
  void RunTokens(int64_t first, int64_t count) {
    std::vector<std::vector<double>> mixed;  // (count, C)
    for (int64_t t = first; t < first + count; ++t)
      mixed.push_back(ConvolveToken(p_.conv_weight, nullptr, p_.conv_width, channels_,
                                    p_.qkv + t * p_.qkv_stride, window_));
    for (int32_t head = 0; head < p_.v_heads; ++head) RunHead(first, head, mixed);
  }

  void RunHead(int64_t first, int32_t head, const std::vector<std::vector<double>>& mixed) {
    const auto count = static_cast<int64_t>(mixed.size());
    const int64_t key_head = head / (p_.v_heads / p_.k_heads);
    std::vector<double> q, k, v, decay, beta, o(count * p_.v_dim);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t ba = (first + i) * p_.ba_stride + head;
      AppendUnit(&mixed[i][key_head * p_.k_dim], 1.0 / std::sqrt(static_cast<double>(p_.k_dim)),
                 &q);
      AppendUnit(&mixed[i][key_width_ + key_head * p_.k_dim], 1.0, &k);
      const double* values = &mixed[i][2 * key_width_ + int64_t{head} * p_.v_dim];
      v.insert(v.end(), values, values + p_.v_dim);
      const double g =
          -std::exp(double{p_.a_log[head]}) * Softplus(double{p_.a[ba]} + p_.dt_bias[head]);
      decay.push_back(std::exp(g));
      beta.push_back(Sigmoid(p_.b[ba]));
    }
    float* state = state_ + int64_t{head} * p_.v_dim * p_.k_dim;
    if (count == 1) {
      GatedDeltaStep(q.data(), k.data(), v.data(), decay[0], beta[0], p_.v_dim, p_.k_dim, state,
                     o.data());
    } else {
      GatedDeltaChunk(q.data(), k.data(), v.data(), decay.data(), beta.data(), count, p_.v_dim,
                      p_.k_dim, state, o.data());
    }
    for (int64_t i = 0; i < count; ++i) StoreOutput(first + i, head, &o[i * p_.v_dim]);
  }

  void AppendUnit(const double* x, double scale, std::vector<double>* unit) const {
    double squares = 0;
    for (int32_t i = 0; i < p_.k_dim; ++i) squares += x[i] * x[i];
    for (int32_t i = 0; i < p_.k_dim; ++i)
      unit->push_back(x[i] * scale / std::sqrt(squares + 1e-6));
  }

  void StoreOutput(int64_t t, int32_t head, const double* o) const {
    double squares = 0;
    for (int32_t i = 0; i < p_.v_dim; ++i) squares += o[i] * o[i];
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

void GatedDeltaChunk(const double* q, const double* k, const double* v, const double* decay,
                     const double* beta, int64_t count, int64_t v_dim, int64_t k_dim, float* state,
                     double* o) {
  const auto dot = [&](const auto* a, const double* b) {
    double sum = 0;
    for (int64_t i = 0; i < k_dim; ++i) sum += a[i] * b[i];
    return sum;
  };
  // decays[i][j]: from after token j to token i, its own included; of the state before: column
  // `count`.
  std::vector<std::vector<double>> decays(count, std::vector<double>(count + 1, 1.0));
  for (int64_t i = 0; i < count; ++i) {
    decays[i][count] = decay[i] * (i > 0 ? decays[i - 1][count] : 1.0);
    for (int64_t j = 0; j < i; ++j) decays[i][j] = decay[i] * decays[i - 1][j];
  }
  std::vector<std::vector<double>> kk(count, std::vector<double>(count)), qk = kk;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      kk[i][j] = decays[i][j] * dot(k + j * k_dim, k + i * k_dim);
      qk[i][j] = decays[i][j] * dot(k + j * k_dim, q + i * k_dim);
    }
  }
  for (int64_t row = 0; row < v_dim; ++row) {
    float* s = state + row * k_dim;
    // What each token adds, by forward substitution: a token recalls the state before the chunk
    // and what earlier tokens of the chunk added.
    std::vector<double> delta(count);
    for (int64_t i = 0; i < count; ++i) {
      double recalled = decays[i][count] * dot(s, k + i * k_dim);
      for (int64_t j = 0; j < i; ++j) recalled += kk[i][j] * delta[j];
      delta[i] = beta[i] * (v[i * v_dim + row] - recalled);
      double read = decays[i][count] * dot(s, q + i * k_dim);
      for (int64_t j = 0; j <= i; ++j) read += qk[i][j] * delta[j];
      o[i * v_dim + row] = read;
    }
    for (int64_t c = 0; c < k_dim; ++c) {
      double updated = decays[count - 1][count] * s[c];
      for (int64_t j = 0; j < count; ++j)
        updated += decays[count - 1][j] * delta[j] * k[j * k_dim + c];
      s[c] = static_cast<float>(updated);
    }
  }
}

void GatedDeltaNet(const OpContext&, const GatedDeltaNetParams& params) {
  for (int64_t b = 0; b < params.sequences.count; ++b)
    Sequence(params, b).Run(params.chunks.tokens != nullptr ? params.chunks.tokens[b] : 0);
}

}  // namespace nibble::kernels::ref
