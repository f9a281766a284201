// Calibration end to end: a tiny model reads tokens, and its export has activation scales for every
// expert and for what is absorbed.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>

#include "base/file.h"
#include "models/dummy_checkpoint.h"
#include "numerics/nvfp4.h"
#include "quantize/quantizer.h"
#include "testing/model_runner.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kPageSize = 16;
constexpr int64_t kPages = 16;
constexpr int kExperts = 4;

class CalibrationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MakeSource(R"({"architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
        "norm_topk_prob": true, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": false})");
  }

  void MakeSource(std::string_view config) {
    auto made = models::MakeDummyCheckpoint(boost::json::parse(config).as_object(),
                                            {.linear_format = WeightFormat::kBf16});
    ASSERT_TRUE(made) << made.error().message();
    source_ = std::move(*made);
  }

  // What the model's linears see over the first `count` tokens of a fixed text.
  Calibration Read(int64_t count) {
    Calibration calibration(true);
    auto model = models::LoadModel(*source_, {.pool = &pool_, .observer = &calibration});
    EXPECT_TRUE(model) << model.error().message();
    EXPECT_TRUE((*model)->Prepare({.tokens = count, .rows = count}));
    auto pages =
        models::KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, kPageSize, kPages, 1);
    EXPECT_TRUE(pages);
    nibble::testing::RunnerSequence text;
    for (int64_t i = 0; i < count; ++i) text.tokens.push_back(static_cast<int32_t>(i * 37 % 259));
    text.pages.resize(kPages);
    std::iota(text.pages.begin(), text.pages.end(), 0);
    nibble::testing::ModelRunner(**model, *pages).Run(text, count);
    return calibration;
  }

  std::unique_ptr<formats::Checkpoint> Quantised(const Calibration& calibration,
                                                 QuantizeReport* report, bool smoothing = false) {
    const auto done = QuantizeCheckpoint(*source_, destination_,
                                         {.calibration = &calibration,
                                          .smoothing = smoothing,
                                          .pool = &pool_,
                                          .replace = true,
                                          .quiet = true});
    EXPECT_TRUE(done) << done.error().message();
    if (!done) return nullptr;
    *report = *done;
    return formats::OpenCheckpoint(destination_).value();
  }

  std::string Algorithm() {
    const auto config = boost::json::parse(ReadFile(destination_ + "/config.json").value());
    return std::string(config.at("quantization_config").at("quant_algo").as_string());
  }

  static std::string Module(int layer, int expert, const std::string& projection) {
    return fmt::format("model.layers.{}.mlp.experts.{}.{}", layer, expert, projection);
  }

  static float InputScale(const formats::Checkpoint& checkpoint, const std::string& module) {
    const auto linear = checkpoint.ReadLinear(module, 0, 0);
    EXPECT_TRUE(linear) << linear.error().message();
    return linear ? linear->view.input_scale : -1.0f;
  }

  TempFolder folder_;
  std::string destination_ = folder_.path() + "/out";
  ThreadPool pool_{2};
  std::unique_ptr<formats::Checkpoint> source_;
};

TEST_F(CalibrationTest, EveryExpertHasAnInputScaleOfItsOwn) {
  const Calibration calibration = Read(256);
  QuantizeReport report;
  const auto made = Quantised(calibration, &report);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(Algorithm(), "NVFP4");
  EXPECT_EQ(report.borrowed_input_scales, 0);
  for (int layer = 0; layer < 2; ++layer) {
    for (int expert = 0; expert < kExperts; ++expert) {
      for (const std::string projection : {"gate_proj", "up_proj", "down_proj"}) {
        const std::string module = Module(layer, expert, projection);
        const InputStatistics* inputs = calibration.Find(module);
        ASSERT_NE(inputs, nullptr) << module;
        EXPECT_EQ(inputs->k, projection == "down_proj" ? 32 : 64);
        EXPECT_FLOAT_EQ(InputScale(*made, module), inputs->amax / kNvfp4Range) << module;
      }
    }
  }
}

// One token takes two experts of four in each of two layers.
TEST_F(CalibrationTest, AnExpertThatNoTokenChoseTakesTheLargestRangeOfTheOthers) {
  const Calibration calibration = Read(1);
  QuantizeReport report;
  const auto made = Quantised(calibration, &report);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(Algorithm(), "NVFP4");
  EXPECT_EQ(report.borrowed_input_scales, 2 * 2 * 3);
  EXPECT_NE(report.ToString().find("12 linears belong to experts that no token"),
            std::string::npos);
  float largest = 0;
  for (int expert = 0; expert < kExperts; ++expert) {
    const InputStatistics* inputs = calibration.Find(Module(1, expert, "down_proj"));
    if (inputs != nullptr) largest = std::max(largest, inputs->amax);
  }
  for (int expert = 0; expert < kExperts; ++expert) {
    const std::string module = Module(1, expert, "down_proj");
    if (calibration.Find(module) != nullptr) continue;
    EXPECT_FLOAT_EQ(InputScale(*made, module), largest / kNvfp4Range) << module;
  }
}

// Multi-head latent attention: one format for all linears, kv_b_proj among them.
TEST_F(CalibrationTest, LatentAttentionIsHeardInWhole) {
  MakeSource(R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
      "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
      "q_lora_rank": null, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
      "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
      "topk_method": "greedy", "scoring_func": "softmax", "first_k_dense_replace": 1,
      "vocab_size": 259, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
      "tie_word_embeddings": false})");
  const Calibration calibration = Read(256);
  for (const bool smoothing : {false, true}) {
    QuantizeReport report;
    const auto made = Quantised(calibration, &report, smoothing);
    ASSERT_NE(made, nullptr);
    if (!smoothing) {
      EXPECT_EQ(Algorithm(), "NVFP4");
    }
    for (const std::string layer : {"0", "1"}) {
      const std::string module = "model.layers." + layer + ".self_attn.kv_b_proj";
      const InputStatistics* inputs = calibration.Find(module);
      ASSERT_NE(inputs, nullptr);
      EXPECT_EQ(inputs->k, 32);
      EXPECT_FLOAT_EQ(InputScale(*made, module), inputs->amax / kNvfp4Range);
      EXPECT_EQ(made->Find(module + ".pre_quant_scale"), nullptr);
    }
  }
}

TEST_F(CalibrationTest, RoutedExpertsAreNotSmoothed) {
  const Calibration calibration = Read(64);
  QuantizeReport report;
  const auto made = Quantised(calibration, &report, true);
  ASSERT_NE(made, nullptr);
  for (const formats::TensorEntry& entry : made->tensors()) {
    if (entry.name.find(".experts.") == std::string::npos) continue;
    EXPECT_FALSE(entry.name.ends_with("pre_quant_scale")) << entry.name;
  }
}

}  // namespace
}  // namespace nibble::quantize
