// The reference against values that can be worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/logits_hash.h"
#include "kernels/ops.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<uint16_t> Bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (float value : values) bits.push_back(Bf16FromFloat(value));
  return bits;
}

std::vector<float> Floats(const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  for (uint16_t value : bits) values.push_back(Bf16ToFloat(value));
  return values;
}

TEST(RefRmsNorm, AddsDeltaAndScales) {
  // x + delta = (3, -4, 12, 0)·1: mean square 169/4, root 6.5.
  std::vector<uint16_t> x = Bf16({1, -4, 10, 0});
  const std::vector<uint16_t> delta = Bf16({2, 0, 2, 0});
  const std::vector<float> weight = {6.5f, 6.5f, 13.0f, 1.0f};
  std::vector<uint16_t> out(4);
  RefOps().rms_norm({}, {.x = x.data(),
                         .delta = delta.data(),
                         .weight = weight.data(),
                         .out = out.data(),
                         .t = 1,
                         .d = 4,
                         .eps = 0.0f,
                         .style = NormStyle::kScaleThenRound});
  EXPECT_EQ(Floats(x), (std::vector<float>{3, -4, 12, 0}));
  EXPECT_EQ(Floats(out), (std::vector<float>{3, -4, 24, 0}));
}

TEST(RefRmsNorm, StylesRoundWhereTheyPromise) {
  // One value: normalised is 1 exactly, so the styles differ only in how the weight enters.
  const float weight = 1.0f + 0x1p-8f;  // halfway between two BF16 values
  std::vector<uint16_t> x = Bf16({3, 3});
  const std::vector<float> weights = {weight, 0.0f};
  std::vector<uint16_t> out(2);
  RmsNormParams params{.x = x.data(),
                       .weight = weights.data(),
                       .out = out.data(),
                       .t = 1,
                       .d = 2,
                       .eps = 0.0f,
                       .style = NormStyle::kScaleOnePlus};
  RefOps().rms_norm({}, params);
  EXPECT_EQ(Floats(out), (std::vector<float>{2.0f, 1.0f}));  // 2 + 2^-8 ties to even
  params.style = NormStyle::kRoundThenScale;
  RefOps().rms_norm({}, params);
  EXPECT_EQ(Floats(out), (std::vector<float>{1.0f, 0.0f}));
}

TEST(RefActivation, KnownValues) {
  const std::vector<uint16_t> gate_up = Bf16({0, 100, -100, 5, 2, 3});
  std::vector<uint16_t> out(3);
  RefOps().activation({}, {.gate_up = gate_up.data(), .out = out.data(), .t = 1, .f = 3});
  EXPECT_EQ(Bf16ToFloat(out[0]), 0.0f);
  EXPECT_EQ(Bf16ToFloat(out[1]), 200.0f);
  EXPECT_NEAR(Bf16ToFloat(out[2]), 0.0f, 1e-30f);
}

TEST(RefRope, QuarterTurnSwapsTheHalvesAndLeavesTheRest) {
  const int32_t head_dim = 6, page_size = 16;
  const std::vector<uint16_t> qkv =
      Bf16({1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 0.3f, 500, -500, 7, 8, 9});
  const std::vector<float> cos = {1, 1, 0, 0}, sin = {0, 0, 1, 1};  // positions 0 and 1
  const int32_t position = 1;
  const int64_t slot = 2 * page_size + 5;
  std::vector<std::byte> k(3 * page_size * head_dim), v(3 * page_size * head_dim);
  std::vector<uint16_t> q_out(head_dim);
  RefOps().rope_and_cache({}, {.qkv = qkv.data(),
                               .t = 1,
                               .q_heads = 1,
                               .cos = cos.data(),
                               .sin = sin.data(),
                               .rotary_dim = 4,
                               .positions = &position,
                               .slots = &slot,
                               .cache = {.k = k.data(),
                                         .v = v.data(),
                                         .format = KvFormat::kFp8,
                                         .k_scale = 0.5f,
                                         .v_scale = 1.0f,
                                         .page_size = page_size,
                                         .kv_heads = 1,
                                         .head_dim = head_dim},
                               .q_out = q_out.data()});
  EXPECT_EQ(Floats(q_out), (std::vector<float>{-3, -4, 1, 2, 5, 6}));
  const auto code = [&](const std::vector<std::byte>& cache, int i) {
    return E4M3ToFloat(static_cast<uint8_t>(cache[slot * head_dim + i]));
  };
  EXPECT_EQ(code(k, 0), -6.0f);  // -3 / 0.5
  EXPECT_EQ(code(k, 5), 12.0f);
  EXPECT_EQ(code(v, 0), 0.3125f);  // nearest E4M3 of 0.3
  EXPECT_EQ(code(v, 1), 448.0f);   // saturates
  EXPECT_EQ(code(v, 2), -448.0f);
}

// One head of dimension 1 over `values`; every key is 0, so every score is 0.
float UniformAttention(const std::vector<float>& values, int32_t window, const float* sink) {
  const int32_t page_size = 16;
  const std::vector<int32_t> pages = {1, 0};
  std::vector<uint16_t> k(2 * page_size), v(2 * page_size, 0x7FC0);  // NaN beyond the end
  for (size_t i = 0; i < values.size(); ++i)
    v[pages[i / page_size] * page_size + i % page_size] = Bf16FromFloat(values[i]);
  const uint16_t q = Bf16FromFloat(1.0f);
  uint16_t out = 0;
  const int32_t q_start[] = {0, 1}, kv_len = static_cast<int32_t>(values.size());
  RefOps().attention({}, {.q = &q,
                          .out = &out,
                          .t = 1,
                          .sequences = 1,
                          .q_start = q_start,
                          .kv_len = &kv_len,
                          .page_table = pages.data(),
                          .max_pages = 2,
                          .q_heads = 1,
                          .scale = 1.0f,
                          .window = window,
                          .sinks = sink,
                          .cache = {.k = reinterpret_cast<std::byte*>(k.data()),
                                    .v = reinterpret_cast<std::byte*>(v.data()),
                                    .page_size = page_size,
                                    .kv_heads = 1,
                                    .head_dim = 1}});
  return Bf16ToFloat(out);
}

TEST(RefAttention, EqualScoresAverage) {
  std::vector<float> values(20, 0.0f);
  values[0] = 20.0f;
  values[19] = 40.0f;
  EXPECT_EQ(UniformAttention(values, 0, nullptr), 3.0f);
  EXPECT_EQ(UniformAttention(values, 4, nullptr), 10.0f);
  EXPECT_EQ(UniformAttention(values, 20, nullptr), 3.0f);
  const float sink = std::log(20.0f);  // weighs as much as the twenty positions together
  EXPECT_EQ(UniformAttention(values, 0, &sink), 1.5f);
}

SampledToken SampleOne(const std::vector<float>& logits, const SampleRow& row) {
  SampledToken out;
  RefOps().sample({}, {.logits = logits.data(),
                       .logits_stride = static_cast<int64_t>(logits.size()),
                       .vocab = static_cast<int64_t>(logits.size()),
                       .rows = {&row, 1},
                       .out = &out});
  return out;
}

TEST(RefSample, GreedyTakesTheSmallestIdOnTies) {
  const SampledToken out = SampleOne({0, 1, 1, -kInfinity}, {.temperature = 0});
  EXPECT_EQ(out.token, 1);
  EXPECT_EQ(out.rank, 1);
  EXPECT_FLOAT_EQ(out.logprob, 1 - std::log(1 + 2 * std::exp(1.0f)));
}

TEST(RefSample, LogprobAndRankAreOfTheRawLogits) {
  const int32_t banned[] = {1};
  const SampledToken out = SampleOne({0, 2, 1, 1}, {.temperature = 0, .banned = banned});
  EXPECT_EQ(out.token, 2);
  EXPECT_EQ(out.rank, 2);
}

TEST(RefSample, UniformWalksIdsInOrder) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(1.0f)};
  EXPECT_EQ(SampleOne(logits, {.uniform = 0.0}).token, 0);
  EXPECT_EQ(SampleOne(logits, {.uniform = 0.24}).token, 0);
  EXPECT_EQ(SampleOne(logits, {.uniform = 0.26}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.uniform = 0.74}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.uniform = 0.999999}).token, 2);
  EXPECT_EQ(SampleOne(logits, {.top_k = 2, .uniform = 0.99}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.top_p = 0.6f, .uniform = 0.99}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.min_p = 0.6f, .uniform = 0.01}).token, 1);
}

TEST(RefSample, PenaltiesAndBias) {
  const TokenCount counts[] = {{.token = 0, .count = 2, .in_prompt = false},
                               {.token = 1, .count = 0, .in_prompt = true}};
  const std::vector<float> logits = {3.0f, 2.0f, 1.9f};
  EXPECT_EQ(
      SampleOne(logits, {.temperature = 0, .frequency_penalty = 0.4f, .counts = counts}).token, 0);
  EXPECT_EQ(
      SampleOne(logits, {.temperature = 0, .frequency_penalty = 0.6f, .counts = counts}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.temperature = 0, .presence_penalty = 1.1f, .counts = counts}).token,
            1);
  EXPECT_EQ(SampleOne(logits, {.temperature = 0, .repetition_penalty = 2, .counts = counts}).token,
            2);
  const TokenBias bias[] = {{.token = 2, .bias = 1.2f}};
  EXPECT_EQ(SampleOne(logits, {.temperature = 0, .bias = bias}).token, 2);
}

TEST(RefSample, RowsWithNothingLeftHaveADefinedResult) {
  const std::vector<float> logits = {1, 3, 2, -kInfinity};
  const int32_t all[] = {0, 1, 2, 3};
  const uint32_t none = 0, second_half = 0b1100;
  EXPECT_EQ(SampleOne(logits, {.banned = all}).token, 1);
  EXPECT_EQ(SampleOne(logits, {.banned = all, .allowed_mask = &second_half}).token, 2);
  EXPECT_EQ(SampleOne(logits, {.allowed_mask = &none}).token, 1);
  const TokenBias bias[] = {{0, kInfinity}, {1, NAN}, {2, 3e38f}};
  EXPECT_EQ(SampleOne({0, 0, 3e38f}, {.temperature = 0, .bias = bias}).token, 0);
  EXPECT_EQ(SampleOne({0, 0, 3e38f}, {.temperature = 0, .bias = {bias + 1, 1}}).token, 2);
}

TEST(RefSample, WhatIsNoRowOfLogitsIsBroken) {
  for (const std::vector<float>& logits : {std::vector<float>{NAN, 1},
                                           {1, -NAN, 2},
                                           {0, kInfinity},
                                           {NAN, -kInfinity},
                                           {-kInfinity, -kInfinity}}) {
    const SampledToken sampled = SampleOne(logits, {.uniform = 0.9});
    EXPECT_TRUE(sampled.broken);
    EXPECT_EQ(sampled.token, 0);
    EXPECT_EQ(sampled.logits_hash, HashLogits(logits));
  }
  EXPECT_FALSE(SampleOne({-kInfinity, -3.4e38f}, {}).broken);
}

}  // namespace
}  // namespace nibble::kernels
