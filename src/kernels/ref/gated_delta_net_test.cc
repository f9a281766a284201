// The recurrence of Gated DeltaNet against two derivations of its own: worked numbers, and the
// chunked (WY) form of the same rule.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/ref/ref.h"

namespace nibble::kernels::ref {
namespace {

using Matrix = std::vector<std::vector<double>>;

// Three tokens, Dk = Dv = 2, computed by hand.
TEST(GatedDeltaStep, FollowsWorkedNumbers) {
  const Matrix k = {{0.6, 0.8}, {1, 0}, {0, 1}};
  const Matrix v = {{1, 2}, {3, -1}, {0.5, 0.25}};
  const Matrix q = {{1, 0}, {0.6, 0.8}, {0.8, -0.6}};
  const double g[] = {-0.1, -0.5, 0};
  const double beta[] = {0.5, 0.9, 0.2};
  const double expected[3][2] = {
      {0.21213203, 0.42426407}, {1.29047508, -0.09191347}, {1.41287207, -0.67443442}};
  float state[4] = {};
  for (int t = 0; t < 3; ++t) {
    double scaled[2], o[2];
    for (int i = 0; i < 2; ++i) scaled[i] = q[t][i] / std::sqrt(2.0);
    GatedDeltaStep(scaled, k[t].data(), v[t].data(), std::exp(g[t]), beta[t], 2, 2, state, o);
    EXPECT_NEAR(o[0], expected[t][0], 1e-7);
    EXPECT_NEAR(o[1], expected[t][1], 1e-7);
  }
  const float final_state[] = {2.71819592f, 0.29408981f, -0.86360816f, 0.43817962f};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(state[i], final_state[i], 1e-6);
}

double Noise(int stream, int64_t i) {
  return std::sin(static_cast<double>(i) * (12.9898 + stream) + stream * 78.233) * 43758.5453 -
         std::floor(std::sin(static_cast<double>(i) * (12.9898 + stream) + stream * 78.233) *
                    43758.5453);
}

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

struct Tokens {
  Matrix q, k, v;
  std::vector<double> g, beta;
};

Tokens RandomTokens(int64_t n, int64_t k_dim, int64_t v_dim) {
  Tokens tokens;
  for (int64_t t = 0; t < n; ++t) {
    std::vector<double> q(k_dim), k(k_dim), v(v_dim);
    for (int64_t i = 0; i < k_dim; ++i) q[i] = Noise(1, t * k_dim + i) - 0.5;
    for (int64_t i = 0; i < k_dim; ++i) k[i] = Noise(2, t * k_dim + i) - 0.5;
    for (int64_t i = 0; i < v_dim; ++i) v[i] = 2 * Noise(3, t * v_dim + i) - 1;
    const double norm = std::sqrt(Dot(k, k));
    for (double& x : k) x /= norm;
    tokens.q.push_back(q), tokens.k.push_back(k), tokens.v.push_back(v);
    tokens.g.push_back(-2 * Noise(4, t));
    tokens.beta.push_back(Noise(5, t));
  }
  return tokens;
}

// Tokens [begin, begin + n) at once: their deltas from a triangular system, then outputs and state
// (Dv, Dk) from products. Yang et al. 2024, section 3.3.
Matrix RunChunk(const Tokens& x, int64_t begin, int64_t n, Matrix* state) {
  const auto v_dim = static_cast<int64_t>(state->size());
  std::vector<double> sum(n);  // of g within the chunk
  for (int64_t i = 0; i < n; ++i) sum[i] = x.g[begin + i] + (i > 0 ? sum[i - 1] : 0);
  const auto decay = [&](int64_t i, int64_t j) { return std::exp(sum[i] - sum[j]); };
  // (I + A) delta = β (V - e^G K Sᵀ) by forward substitution.
  Matrix delta(n, std::vector<double>(v_dim)), out = delta;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < v_dim; ++c) {
      double value = x.v[begin + i][c] - std::exp(sum[i]) * Dot((*state)[c], x.k[begin + i]);
      for (int64_t j = 0; j < i; ++j)
        value -= decay(i, j) * Dot(x.k[begin + i], x.k[begin + j]) * delta[j][c];
      delta[i][c] = x.beta[begin + i] * value;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < v_dim; ++c) {
      out[i][c] = std::exp(sum[i]) * Dot((*state)[c], x.q[begin + i]);
      for (int64_t j = 0; j <= i; ++j)
        out[i][c] += decay(i, j) * Dot(x.q[begin + i], x.k[begin + j]) * delta[j][c];
    }
  }
  for (int64_t c = 0; c < v_dim; ++c) {
    for (size_t d = 0; d < (*state)[c].size(); ++d) {
      (*state)[c][d] *= std::exp(sum[n - 1]);
      for (int64_t j = 0; j < n; ++j)
        (*state)[c][d] += decay(n - 1, j) * delta[j][c] * x.k[begin + j][d];
    }
  }
  return out;
}

// The state of the step form is FP32: one rounding of 2^-24 per token and element, which decays
// with the state.
TEST(GatedDeltaStep, EqualsTheChunkedForm) {
  constexpr int64_t kDim = 12, kValueDim = 10, kCount = 150, kChunk = 64;  // the last chunk: 22
  const Tokens tokens = RandomTokens(kCount, kDim, kValueDim);
  Matrix chunked(kValueDim, std::vector<double>(kDim));
  std::vector<float> state;
  for (int64_t c = 0; c < kValueDim; ++c) {
    for (int64_t d = 0; d < kDim; ++d) {
      state.push_back(static_cast<float>(Noise(6, c * kDim + d) - 0.5));
      chunked[c][d] = state.back();
    }
  }
  for (int64_t begin = 0; begin < kCount; begin += kChunk) {
    const int64_t n = std::min(kChunk, kCount - begin);
    const Matrix expected = RunChunk(tokens, begin, n, &chunked);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = begin + i;
      std::vector<double> o(kValueDim);
      GatedDeltaStep(tokens.q[t].data(), tokens.k[t].data(), tokens.v[t].data(),
                     std::exp(tokens.g[t]), tokens.beta[t], kValueDim, kDim, state.data(),
                     o.data());
      for (int64_t c = 0; c < kValueDim; ++c)
        EXPECT_NEAR(o[c], expected[i][c], 1e-6) << "token " << t;
    }
    for (int64_t c = 0; c < kValueDim; ++c)
      for (int64_t d = 0; d < kDim; ++d) EXPECT_NEAR(state[c * kDim + d], chunked[c][d], 1e-6);
  }
}

}  // namespace
}  // namespace nibble::kernels::ref
