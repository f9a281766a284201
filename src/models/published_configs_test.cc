// config.json as published: what its family's defaults and spellings come to.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "models/dummy_checkpoint.h"
#include "models/registry.h"

namespace nibble::models {
namespace {

ModelInfo Describe(const boost::json::object& config) {
  auto model = BuildModel(config);
  EXPECT_TRUE(model) << model.error().message();
  return model ? (*model)->info() : ModelInfo{};
}

ModelInfo Describe(const char* text) { return Describe(boost::json::parse(text).as_object()); }

std::string Problem(const char* text) {
  const auto model = BuildModel(boost::json::parse(text).as_object());
  return model ? "" : model.error().message();
}

int64_t Windows(const ModelInfo& info) {
  return std::ranges::count_if(info.kv, [](const KvSpec& kv) { return kv.window > 0; });
}

boost::json::object Phi4Mini() {
  auto config = boost::json::parse(R"({"architectures": ["Phi3ForCausalLM"], "hidden_size": 3072,
      "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
      "vocab_size": 200064, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
      "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_scaling": {"type": "longrope"},
      "rms_norm_eps": 1e-05, "sliding_window": 262144, "tie_word_embeddings": true})")
                    .as_object();
  auto& scaling = config["rope_scaling"].as_object();
  for (const char* name : {"short_factor", "long_factor"})
    scaling[name] = boost::json::array(48, boost::json::value(1.5));
  return config;
}

TEST(PublishedConfigs, Phi4MiniHasABorder) {
  const ModelInfo info = Describe(Phi4Mini());
  EXPECT_EQ(info.rope_border, 4096);
  EXPECT_EQ(info.kv.at(0).head_dim, 128);
  EXPECT_EQ(info.kv.at(0).kv_heads, 8);
}

TEST(PublishedConfigs, PhiFactorsMustFitTheRotation) {
  auto config = Phi4Mini();
  config["partial_rotary_factor"] = 1.0;
  const auto model = BuildModel(config);
  ASSERT_FALSE(model);
  EXPECT_NE(model.error().message().find("short_factor holds 48"), std::string::npos)
      << model.error().message();
}

// The multimodal file gives little more than sizes.
TEST(PublishedConfigs, Gemma3TakesTheRestFromItsDefaults) {
  const ModelInfo info = Describe(R"({"architectures": ["Gemma3ForConditionalGeneration"],
      "model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
      "model_type": "gemma3_text", "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024}, "vision_config": {"hidden_size": 1152}})");
  EXPECT_EQ(info.vocab_size, 262208);
  EXPECT_EQ(info.max_positions, 131072);
  EXPECT_EQ(info.kv.at(0).head_dim, 256);
  EXPECT_EQ(info.kv.at(0).kv_heads, 4);
  EXPECT_EQ(Windows(info), 29);  // of 34: layers 5, 11, 17, 23 and 29 see everything
  EXPECT_EQ(info.kv.at(5).window, 0);
  EXPECT_EQ(info.kv.at(4).window, 1024);
}

TEST(PublishedConfigs, GemmaWithSoftCapsIsRefused) {
  EXPECT_NE(
      Problem(
          R"({"architectures": ["Gemma3ForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
                        "num_hidden_layers": 1, "final_logit_softcapping": 30.0})")
          .find("final_logit_softcapping"),
      std::string::npos);
}

TEST(PublishedConfigs, ScoutSeesChunksInThreeLayersOfFour) {
  const ModelInfo info = Describe(R"({"architectures": ["Llama4ForConditionalGeneration"],
      "model_type": "llama4", "text_config": {"attention_chunk_size": 8192, "attn_temperature_tuning": 4,
      "floor_scale": 8192, "attn_scale": 0.1, "head_dim": 128, "hidden_size": 5120, "interleave_moe_layer_step": 1,
      "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760,
      "model_type": "llama4_text", "moe_layers": null, "no_rope_layers": [], "num_attention_heads": 40,
      "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16,
      "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
      "use_qk_norm": true, "vocab_size": 202048}})");
  EXPECT_EQ(info.vocab_size, 202048);
  EXPECT_EQ(Windows(info), 36);
  EXPECT_EQ(info.kv.at(2).window, 8192);
  EXPECT_EQ(info.kv.at(3).window, 0);
}

TEST(PublishedConfigs, MistralSmall31IsAPlainMistralInAWrapper) {
  const ModelInfo info = Describe(R"({"architectures": ["Mistral3ForConditionalGeneration"],
      "model_type": "mistral3", "text_config": {"head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
      "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
      "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
      "rope_theta": 1000000000.0, "sliding_window": null, "vocab_size": 131072}, "vision_config": {}})");
  EXPECT_EQ(info.kv.at(0).head_dim, 128);
  EXPECT_EQ(Windows(info), 0);
  EXPECT_EQ(info.rope_border, 0);
}

constexpr const char* kQwen3Next = R"({"architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": false, "decoder_sparse_step": 1, "full_attention_interval": 4, "head_dim": 256,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5120, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_value_head_dim": 128, "max_position_embeddings": 262144, "mlp_only_layers": [],
    "model_type": "qwen3_next", "moe_intermediate_size": 512, "norm_topk_prob": true, "num_attention_heads": 16,
    "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000000,
    "shared_expert_intermediate_size": 512, "tie_word_embeddings": false, "vocab_size": 151936})";

// The counts of the release: 1550 tensors in a recurrent layer, 1549 in one with attention and in
// the MTP module's, 7 beside the layers; 79.67 billion parameters, 3.56 of them for a token.
TEST(PublishedConfigs, Qwen3NextHasTheTensorsOfTheRelease) {
  const auto config = boost::json::parse(kQwen3Next).as_object();
  const auto count = [&](bool draft) {
    auto checkpoint =
        MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kBf16, .draft = draft});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    return static_cast<int64_t>((*checkpoint)->tensors().size());
  };
  EXPECT_EQ(count(true), 36 * 1550 + 12 * 1549 + 1549 + 7);
  EXPECT_EQ(count(false), 36 * 1550 + 12 * 1549 + 3);

  const auto checkpoint = MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kBf16});
  const auto info = DescribeModel(**checkpoint);
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_NEAR(static_cast<double>(info->parameters), 79.67e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(info->active_parameters), 3.56e9, 0.01e9);
}

TEST(PublishedConfigs, Qwen3NextKeepsTheStateOf36Layers) {
  const ModelInfo info = Describe(kQwen3Next);
  EXPECT_EQ(info.kv.size(), 12u);
  ASSERT_EQ(info.state.size(), 36u);
  EXPECT_EQ(info.state[0].recurrent, 2097152);
  EXPECT_EQ(info.state[0].conv, 49152);
  EXPECT_EQ(KvBytesPerToken(info, kernels::KvFormat::kFp8), 12 * 1024);
}

// Dense, in its wrapper: 16 layers of 64 with attention, three value heads per key head.
TEST(PublishedConfigs, Qwen35DenseHasAnMtpModuleOf15Tensors) {
  const auto config = boost::json::parse(R"({"architectures": ["Qwen3_5ForConditionalGeneration"],
      "image_token_id": 248056, "model_type": "qwen3_5", "tie_word_embeddings": false, "text_config": {
      "attn_output_gate": true, "full_attention_interval": 4, "head_dim": 256, "hidden_size": 5120,
      "intermediate_size": 17408, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
      "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128,
      "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "model_type": "qwen3_5_text",
      "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": false, "num_attention_heads": 24,
      "num_hidden_layers": 64, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "vocab_size": 248320,
      "rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10], "rope_type": "default",
      "rope_theta": 10000000, "partial_rotary_factor": 0.25}}, "vision_config": {"depth": 27}})")
                          .as_object();
  const auto with =
      MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kBf16, .draft = true});
  const auto without = MakeDummyCheckpoint(config, {.linear_format = WeightFormat::kBf16});
  ASSERT_TRUE(with && without);
  EXPECT_EQ((*with)->tensors().size(), (*without)->tensors().size() + 15);
  const ModelInfo info = Describe(config);
  EXPECT_EQ(info.kv.size(), 16u);
  EXPECT_EQ(info.state.size(), 48u);
  EXPECT_EQ(info.state[0].recurrent, 48 * 128 * 128 * 4);
}

// ---- Mixtures of experts, by the counts that their makers publish

ModelInfo DescribeWeights(const char* text) {
  const auto checkpoint = MakeDummyCheckpoint(boost::json::parse(text).as_object(),
                                              {.linear_format = WeightFormat::kBf16});
  EXPECT_TRUE(checkpoint) << checkpoint.error().message();
  const auto info = DescribeModel(**checkpoint);
  EXPECT_TRUE(info) << info.error().message();
  return *info;
}

TEST(PublishedConfigs, Qwen3Moe30BHasTheParametersOfTheRelease) {
  const ModelInfo info = DescribeWeights(R"({"architectures": ["Qwen3MoeForCausalLM"],
      "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
      "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
      "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
      "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
      "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
      "use_sliding_window": false, "vocab_size": 151936})");
  EXPECT_EQ(info.parameters, 30532122624);
  EXPECT_EQ(Windows(info), 0);
}

TEST(PublishedConfigs, Mixtral8x7BHasTheParametersOfTheRelease) {
  const ModelInfo info =
      DescribeWeights(R"({"architectures": ["MixtralForCausalLM"], "hidden_act": "silu",
      "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
      "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
      "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
      "vocab_size": 32000})");
  EXPECT_EQ(info.parameters, 46702792704);
}

TEST(PublishedConfigs, GptOss20BHasTheParametersOfItsModelCard) {
  const ModelInfo info =
      DescribeWeights(R"({"architectures": ["GptOssForCausalLM"], "attention_bias": true,
      "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
      "initial_context_length": 4096, "intermediate_size": 2880, "max_position_embeddings": 131072,
      "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
      "num_local_experts": 32, "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0,
      "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
      "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": false,
      "vocab_size": 201088})");
  EXPECT_NEAR(static_cast<double>(info.parameters), 20.91e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(info.active_parameters), 3.61e9, 0.01e9);
  ASSERT_EQ(info.kv.size(), 24u);  // no layer_types here: the even ones slide
  EXPECT_EQ(info.kv[0].window, 128);
  EXPECT_EQ(info.kv[1].window, 0);
  EXPECT_EQ(Windows(info), 12);
}

// The head is the wrapper's: a text part that calls it tied says nothing.
TEST(PublishedConfigs, Qwen3VlMoeIsReadInItsWrapper) {
  const ModelInfo info =
      DescribeWeights(R"({"architectures": ["Qwen3VLMoeForConditionalGeneration"],
      "model_type": "qwen3_vl_moe", "tie_word_embeddings": false, "text_config": {"tie_word_embeddings": true,
      "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
      "intermediate_size": 6144, "max_position_embeddings": 262144, "mlp_only_layers": [],
      "model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 768, "norm_topk_prob": true,
      "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
      "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": {"mrope_interleaved": true,
      "mrope_section": [24, 20, 20], "rope_type": "default"}, "rope_theta": 5000000, "vocab_size": 151936}})");
  EXPECT_EQ(info.parameters, 30532122624);
}

constexpr const char* kDeepseekV3 = R"({"architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3", "attention_bias": false, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280})";

TEST(PublishedConfigs, DeepseekV3CachesOneRowPerTokenAndLayer) {
  const ModelInfo info = Describe(kDeepseekV3);
  ASSERT_EQ(info.kv.size(), 61u);
  EXPECT_EQ(info.kv.at(0).head_dim, 576);
  EXPECT_EQ(KvBytesPerToken(info, kernels::KvFormat::kBf16), 61 * 1152);
  const auto draft = BuildModel(boost::json::parse(kDeepseekV3).as_object(), {.draft = true});
  ASSERT_TRUE(draft) << draft.error().message();
  EXPECT_TRUE((*draft)->has_draft());
  EXPECT_EQ((*draft)->info().kv.size(), 62u);
}

TEST(PublishedConfigs, DeepseekRoutingOfAnotherKindIsRefused) {
  auto config = boost::json::parse(kDeepseekV3).as_object();
  config["scoring_func"] = "softmax";
  const auto model = BuildModel(config);
  ASSERT_FALSE(model);
  EXPECT_NE(model.error().message().find("scoring_func \"softmax\""), std::string::npos)
      << model.error().message();
}

TEST(PublishedConfigs, DeepseekV2LiteHasNoLatentQueries) {
  const ModelInfo info = Describe(R"({"architectures": ["DeepseekV2ForCausalLM"],
      "attention_bias": false, "aux_loss_alpha": 0.001, "first_k_dense_replace": 1, "hidden_act": "silu",
      "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
      "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
      "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
      "num_key_value_heads": 16, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
      "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
      "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
      "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
      "v_head_dim": 128, "vocab_size": 102400})");
  EXPECT_EQ(info.kv.size(), 27u);
  EXPECT_EQ(info.vocab_size, 102400);
}

TEST(PublishedConfigs, KimiK25IsADeepseekV3InAWrapper) {
  boost::json::object config = boost::json::parse(R"({"model_type": "kimi_k25",
      "architectures": ["KimiK25ForConditionalGeneration"], "vision_config": {}})")
                                   .as_object();
  auto text = boost::json::parse(kDeepseekV3).as_object();
  text["num_attention_heads"] = 64;
  text["n_routed_experts"] = 384;
  text["n_group"] = 1;
  text["topk_group"] = 1;
  config["text_config"] = text;
  const ModelInfo info = Describe(config);
  EXPECT_EQ(info.architecture, "KimiK25ForConditionalGeneration");
  EXPECT_EQ(info.kv.size(), 61u);
}

TEST(PublishedConfigs, Glm45Air) {
  const ModelInfo info = Describe(R"({"architectures": ["Glm4MoeForCausalLM"],
      "attention_bias": true, "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
      "intermediate_size": 10944, "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "n_group": 1,
      "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 96,
      "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
      "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 1000000,
      "routed_scaling_factor": 1.0, "tie_word_embeddings": false, "topk_group": 1, "use_qk_norm": false,
      "vocab_size": 151552})");
  EXPECT_EQ(info.kv.size(), 46u);
  EXPECT_EQ(info.kv.at(0).kv_heads, 8);
}

}  // namespace
}  // namespace nibble::models
