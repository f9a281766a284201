// Perplexity and divergence through the engine, on tiny models.
#include "eval/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "engine/generate.h"
#include "engine/testing/byte_tokenizer.h"
#include "models/dummy_checkpoint.h"
#include "models/model.h"

namespace nibble::eval {
namespace {

constexpr std::string_view kConfig = R"({"architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 257,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})";

const std::string kText = "Bread is made from four things: flour, water, salt and yeast. Mix them.";

class CompareTest : public testing::Test {
 protected:
  std::unique_ptr<engine::Engine> Engine(uint64_t seed, int64_t vocab = 257) {
    boost::json::object config = boost::json::parse(kConfig).as_object();
    config["vocab_size"] = vocab;
    const auto checkpoint =
        models::MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kBf16, .seed = seed});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    auto model = models::LoadModel(**checkpoint, {.pool = &pool_});
    EXPECT_TRUE(model) << model.error().message();
    auto made = engine::Engine::Create(
        std::move(*model), engine::MakeByteTokenizer(),
        {.max_model_len = 64, .max_sequences = 1, .kv_bytes = int64_t{1} << 22, .pool = &pool_});
    EXPECT_TRUE(made) << made.error().message();
    return std::move(*made);
  }

  ThreadPool pool_{1};
};

TEST_F(CompareTest, PerplexityIsThatOfThePromptLogprobs) {
  const auto model = Engine(1);
  const auto reading = Read(*model, kText, {.window = 40});
  ASSERT_TRUE(reading) << reading.error().message();
  double sum = 0;
  int64_t count = 0;
  for (size_t begin = 0; begin < kText.size(); begin += 40) {
    engine::Request request;
    request.tokens = model->tokenizer().Encode(kText.substr(begin, 40)).value();
    request.sampling.max_tokens = 0;
    request.sampling.prompt_logprobs = 0;
    const auto scored = engine::Generate(*model, std::move(request)).value();
    for (const auto& token : scored.prompt.logprobs) {
      if (!token) continue;
      sum -= token->logprob;
      ++count;
    }
  }
  EXPECT_EQ(reading->scored_tokens, count);
  EXPECT_NEAR(reading->perplexity, std::exp(sum / static_cast<double>(count)), 1e-3);
}

TEST_F(CompareTest, AModelDoesNotDifferFromItself) {
  const auto a = Engine(1), b = Engine(1);
  const auto found = Compare(*a, *b, kText, {.window = 32});
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_EQ(found->mean_kl, 0);
  EXPECT_EQ(found->same_top, 1);
  EXPECT_EQ(found->model.perplexity, found->reference.perplexity);
  EXPECT_EQ(found->model.perplexity, Read(*a, kText, {.window = 32})->perplexity);
}

TEST_F(CompareTest, AnotherModelDiffersAndTheSumsAreReproducible) {
  const auto a = Engine(1), b = Engine(2);
  const auto found = Compare(*a, *b, kText);
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_GT(found->mean_kl, 1e-4);
  EXPECT_GE(found->largest_kl, found->mean_kl);
  EXPECT_LT(found->same_top, 1);
  EXPECT_EQ(found->mean_kl, Compare(*a, *b, kText)->mean_kl);
}

TEST_F(CompareTest, WhatCannotBeComparedIsRefused) {
  const auto model = Engine(1), other = Engine(1, 300);
  EXPECT_EQ(Read(*model, "x").error().code(), Code::kInvalidArgument);
  const auto found = Compare(*model, *other, kText);
  ASSERT_FALSE(found);
  EXPECT_NE(found.error().message().find("vocabulary"), std::string::npos);
}

}  // namespace
}  // namespace nibble::eval
