// Config files as ModelOpt, compressed-tensors and transformers write them.
#include "formats/quantization_config.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>

#include "base/file.h"
#include "formats/json_file.h"
#include "testing/golden.h"

namespace nibble::formats {
namespace {

QuantizationConfig Parse(const std::string& quantization_config, const std::string& hf_quant = "") {
  const auto config =
      ParseJsonObject("{\"quantization_config\":" + quantization_config + "}", "config.json");
  EXPECT_TRUE(config) << config.error().message();
  if (hf_quant.empty()) return ParseQuantizationConfig(*config, nullptr);
  const auto hf = ParseJsonObject(hf_quant, "hf_quant_config.json");
  EXPECT_TRUE(hf) << hf.error().message();
  return ParseQuantizationConfig(*config, &*hf);
}

std::string Kinds(const QuantizationConfig& config) {
  std::string kinds;
  for (const auto& named : config.formats) kinds += (kinds.empty() ? "" : " ") + named.kind;
  return kinds;
}

TEST(QuantizationConfigTest, SpellingsOfTheFormats) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4"})", "nvfp4"},
      {R"({"quant_algo":"w4a16_nvfp4"})", "nvfp4"},
      {R"({"quant_method":"modelopt","quant_algo":null})", ""},
      {R"({"quant_algo":"W4A8_MXFP4_FP8"})", "mxfp4"},
      {R"({"quant_algo":"FP8_PB_WO"})", "fp8"},
      {R"({"quant_method":"fp8","weight_block_size":[128,128]})", "fp8"},
      {R"({"quant_method":"fp8","moe_quant_algo":"NVFP4"})", "nvfp4 fp8"},
      {R"({"quant_method":"mxfp4"})", "mxfp4"},
      {R"({"quant_method":"awq","bits":4})", "awq"},
      {R"({"quant_method":"gptq","bits":4})", "gptq"},
      {R"({"quant_method":"mxfp8"})", "mxfp8"},
      {R"({"quant_method":"compressed-tensors","format":"dense","config_groups":{"a":{"weights":
          {"num_bits":4,"type":"float","group_size":16}}}})",
       ""},
      {R"({"quant_method":"compressed-tensors","format":"naive-quantized","config_groups":{"a":
          {"weights":{"num_bits":8,"type":"int"}}}})",
       "int"},
      {R"({"quant_algo":"MIXED_PRECISION","quantized_layers":{"lm_head":{"quant_algo":
          "W4A16_NVFP4"},"model.layers.0.self_attn.q_proj":{"quant_algo":"FP8"}}})",
       "nvfp4 fp8"},
      {R"([])", ""},
      {R"("nvfp4")", ""},
      {R"({"config_groups":[1],"ignore":{"a":1},"kv_cache_scheme":3,"quant_algo":4})", ""},
  };
  for (const auto& [text, kinds] : cases) EXPECT_EQ(Kinds(Parse(text)), kinds) << text;
  EXPECT_EQ(Parse(R"({"quant_algo":"NVFP5"})").unknown, std::vector<std::string>{"NVFP5"});
}

TEST(QuantizationConfigTest, FilesOfTheProducers) {
  const std::string golden = GoldenPath("formats/");
  const auto modelopt = OpenCheckpoint(golden + "modelopt_nvfp4");
  ASSERT_TRUE(modelopt) << modelopt.error().message();
  const auto config = ReadQuantizationConfig(**modelopt);
  ASSERT_TRUE(config);
  EXPECT_EQ(Kinds(*config), "nvfp4");
  EXPECT_EQ(config->kv_cache, "fp8");
  EXPECT_TRUE(config->NamesModule("model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(config->NamesModule("lm_head"));
  const auto formats = OpenCheckpoint(golden + "compressed_tensors_formats");
  ASSERT_TRUE(formats) << formats.error().message();
  const auto mixed = ReadQuantizationConfig(**formats);
  EXPECT_EQ(Kinds(*mixed), "nvfp4 mxfp4 fp8 mxfp8");
  EXPECT_TRUE(mixed->NamesModule("fp8_block"));
  EXPECT_FALSE(mixed->NamesModule("bf16"));
  EXPECT_EQ(ConfiguredFp8Block((*formats)->config()), (std::pair<int64_t, int64_t>{128, 128}));
}

TEST(QuantizationConfigTest, EveryExportOfModelOpt) {
  const std::map<std::string, std::string> expected = {{"nvfp4", "nvfp4"},
                                                       {"w4a16_nvfp4", "nvfp4"},
                                                       {"fp8", "fp8"},
                                                       {"fp8_per_channel_per_token", "fp8"},
                                                       {"fp8_2d_blockwise_weight_only", "fp8"},
                                                       {"int4_awq", "int"},
                                                       {"int4_blockwise_weight_only", "int"},
                                                       {"w4a8_awq_beta", "int"},
                                                       {"int8_weight_only", "int"},
                                                       {"int8_smoothquant", "int"},
                                                       {"mxfp4", "mxfp4"},
                                                       {"mxfp8", "mxfp8"},
                                                       {"mixed", "fp8 nvfp4"}};
  const auto text = ReadFile(GoldenPath("formats/modelopt_formats/exports.json"));
  ASSERT_TRUE(text);
  const auto exports = ParseJsonObject(*text, "exports.json");
  ASSERT_TRUE(exports) << exports.error().message();
  EXPECT_EQ(exports->size(), expected.size());
  for (const auto& [name, kinds] : expected) {
    const auto& files = exports->at(name).as_object();
    const auto config = ParseQuantizationConfig(files.at("config.json").as_object(),
                                                &files.at("hf_quant_config.json").as_object());
    EXPECT_EQ(Kinds(config), kinds) << name;
    EXPECT_TRUE(config.unknown.empty()) << name;
    EXPECT_FALSE(config.NamesModule("lm_head")) << name;
  }
}

TEST(QuantizationConfigTest, HfQuantConfigIsMerged) {
  const auto config = Parse(R"({"quant_algo":"NVFP4","ignore":["a"]})",
                            R"({"quantization":{"quant_algo":"NVFP4","kv_cache_quant_algo":"FP8",
                "exclude_modules":["b"]}})");
  EXPECT_EQ(Kinds(config), "nvfp4");
  EXPECT_EQ(config.formats[0].file, "config.json");
  EXPECT_EQ(config.kv_cache, "fp8");
  EXPECT_FALSE(config.NamesModule("a"));
  EXPECT_FALSE(config.NamesModule("b"));
  EXPECT_TRUE(config.NamesModule("c"));
  EXPECT_EQ(
      Parse(R"({"quant_algo":"FP8","kv_cache_scheme":{"num_bits":8,"type":"float"}})").kv_cache,
      "fp8");
}

TEST(ModulePatternTest, ListsOfModules) {
  struct Case {
    const char* pattern;
    const char* module;
    bool matches;
  };
  for (const Case& test : {
           Case{"lm_head", "lm_head", true},
           {"model.layers.3*", "model.layers.3.mlp.gate", true},
           {"model.layers.3*", "model.layers.4.mlp.gate", false},
           {"model.layers.*.mlp.gate", "model.layers.12.mlp.gate", true},
           {"model.layers.*.mlp.gate", "model.layers.12.mlp.gate_proj", false},
           {"model.layers.[0-3].mlp", "model.layers.2.mlp", true},
           {"model.layers.[!0-3].mlp", "model.layers.2.mlp", false},
           {"*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
           {"?", "ab", false},
           {"router", "model.layers.0.mlp.router", true},  // parts of names, by old exports
           {"", "lm_head", false},
           {"[", "lm_head", false},
           {"re:.*gate", "model.layers.0.mlp.gate_proj", true},  // anchored at the start alone
           {"re:.*mlp.gate$", "model.layers.0.mlp.gate_proj", false},
           {"re:layers", "model.layers.0", false},
           {"re:model\\.layers\\.\\d+\\.(mlp|attn)$", "model.layers.31.mlp", true},
           {"re:(((", "anything", false},
           {"re:(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", false},
           {"model.language_model.layers.0*", "model.layers.0.mlp", true},
       }) {
    EXPECT_EQ(ModulePattern(test.pattern).Matches(test.module), test.matches)
        << test.pattern << " on " << test.module;
  }
}

}  // namespace
}  // namespace nibble::formats
