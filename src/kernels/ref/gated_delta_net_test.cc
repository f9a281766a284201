// The recurrence of Gated DeltaNet against worked numbers, and its two forms against each other.
#include <gtest/gtest.h>

#include <algorithm>
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

// The state is FP32: the step form rounds it after each token, the chunked form after each chunk.
TEST(GatedDeltaChunk, EqualsTheSteps) {
  constexpr int64_t kDim = 12, kValueDim = 10, kCount = 150;  // the last chunk: 22
  const Tokens x = RandomTokens(kCount, kDim, kValueDim);
  std::vector<float> state;
  for (int64_t i = 0; i < kValueDim * kDim; ++i)
    state.push_back(static_cast<float>(Noise(6, i) - 0.5));
  std::vector<float> chunked = state;
  for (int64_t begin = 0; begin < kCount; begin += kDeltaChunk) {
    const int64_t count = std::min<int64_t>(kDeltaChunk, kCount - begin);
    std::vector<double> q, k, v, decay, o(count * kValueDim);
    for (int64_t t = begin; t < begin + count; ++t) {
      q.insert(q.end(), x.q[t].begin(), x.q[t].end());
      k.insert(k.end(), x.k[t].begin(), x.k[t].end());
      v.insert(v.end(), x.v[t].begin(), x.v[t].end());
      decay.push_back(std::exp(x.g[t]));
    }
    GatedDeltaChunk(q.data(), k.data(), v.data(), decay.data(), &x.beta[begin], count, kValueDim,
                    kDim, chunked.data(), o.data());
    for (int64_t t = begin; t < begin + count; ++t) {
      std::vector<double> expected(kValueDim);
      GatedDeltaStep(x.q[t].data(), x.k[t].data(), x.v[t].data(), std::exp(x.g[t]), x.beta[t],
                     kValueDim, kDim, state.data(), expected.data());
      for (int64_t c = 0; c < kValueDim; ++c)
        EXPECT_NEAR(o[(t - begin) * kValueDim + c], expected[c], 1e-6) << "token " << t;
    }
    for (size_t i = 0; i < state.size(); ++i) EXPECT_NEAR(state[i], chunked[i], 1e-6);
  }
}

}  // namespace
}  // namespace nibble::kernels::ref
