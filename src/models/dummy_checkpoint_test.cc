// Dummy weights: what the config files say is what is stored, and any part of a tensor is the same
// whoever makes it.
#include "models/dummy_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "formats/stored_formats.h"
#include "models/dummy_values.h"
#include "models/model.h"
#include "models/registry.h"
#include "testing/model_runner.h"
#include "testing/temp_folder.h"

namespace nibble::models {
namespace {

namespace json = boost::json;
using nibble::testing::ModelRunner;
using nibble::testing::RunnerSequence;

json::object LlamaConfig() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 256,
    "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": false})")
      .as_object();
}

json::object LlamaConfig(std::string_view quantization) {
  json::object config = LlamaConfig();
  config["quantization_config"] = json::parse(quantization);
  return config;
}

std::vector<std::byte> Bytes(const formats::TensorData& data) {
  return {data.view.data, data.view.data + data.view.bytes()};
}

TEST(DummyValues, AnyPartIsAPartOfTheSameWhole) {
  ThreadPool pool(2);
  using Kind = DummyValues::Kind;
  for (const DummyValues& values :
       {DummyValues{.kind = Kind::kBits}, DummyValues{.kind = Kind::kE4m3Codes},
        DummyValues{.kind = Kind::kE4m3Scales},
        DummyValues{.kind = Kind::kFloats, .dtype = DType::kBF16, .spread = 1},
        DummyValues{.kind = Kind::kFloats, .dtype = DType::kF32, .centre = 2, .spread = 1},
        DummyValues{.kind = Kind::kQuotient, .first = 128}}) {
    std::vector<std::byte> whole((1 << 20) + 24), parallel(whole.size());
    FillDummy(values, 0, whole, nullptr);
    FillDummy(values, 0, parallel, &pool);
    EXPECT_EQ(whole, parallel);
    for (const auto& [first, count] :
         {std::pair<int64_t, int64_t>{4, 4}, {4092, 8}, {8200, 20000}}) {
      std::vector<std::byte> part(count);
      FillDummy(values, first, part, nullptr);
      EXPECT_EQ(0, std::memcmp(part.data(), whole.data() + first, count)) << first;
    }
  }
}

// What a GPU makes for itself, word by word.
std::vector<std::byte> MadeUpRange(const DummyValues& values, int64_t first, int64_t count) {
  std::vector<std::byte> bytes;
  for (int64_t at = first; at < first + count; ++at)
    bytes.push_back(static_cast<std::byte>(MadeUpWord(values, at / 8) >> (at % 8 * 8)));
  return bytes;
}

TEST(DummyValues, WordsAreTheSameBytes) {
  using Kind = DummyValues::Kind;
  const uint64_t stream = DummyStream(3, "x");
  for (const DummyValues& values :
       {DummyValues{.kind = Kind::kBits, .stream = stream},
        DummyValues{.kind = Kind::kE4m3Codes, .stream = stream},
        DummyValues{.kind = Kind::kE4m3Scales, .stream = stream},
        DummyValues{.kind = Kind::kBytes, .base = 0x38, .mask = 0x0F, .stream = stream},
        DummyValues{.kind = Kind::kNibbles, .base = 6, .mask = 1, .stream = stream},
        DummyValues{.kind = Kind::kFloats, .dtype = DType::kBF16, .spread = 1, .stream = stream},
        DummyValues{.kind = Kind::kFloats,
                    .dtype = DType::kF16,
                    .centre = 0.1f,
                    .spread = 0.05f,
                    .stream = stream},
        DummyValues{.kind = Kind::kFloats,
                    .dtype = DType::kF32,
                    .centre = 2,
                    .spread = 1,
                    .stream = stream},
        DummyValues{.kind = Kind::kQuotient, .first = 128},
        DummyValues{.kind = Kind::kPair, .first = 5, .second = -7}}) {
    std::vector<std::byte> whole(20000);
    FillDummy(values, 0, whole, nullptr);
    EXPECT_EQ(MadeUpRange(values, 0, 20000), whole) << static_cast<int>(values.kind);
  }
}

// The rows that a view without bytes describes, one after another.
std::vector<std::byte> MadeUpRowBytes(const MadeUpRows& rows, int64_t count, int64_t row_bytes) {
  std::vector<std::byte> bytes;
  for (int64_t i = 0; i < count; ++i) {
    const auto row = MadeUpRange(rows.bytes, rows.first + i * rows.stride, row_bytes);
    bytes.insert(bytes.end(), row.begin(), row.end());
  }
  return bytes;
}

void ExpectSameWeight(const formats::LinearData& made_up, const formats::LinearData& stored) {
  const QuantView& view = made_up.view;
  ASSERT_NE(view.made_up, nullptr);
  EXPECT_EQ(view.data, nullptr);
  EXPECT_EQ(view.scales, nullptr);
  EXPECT_EQ(view.format, stored.view.format);
  EXPECT_EQ(view.global_scale, stored.view.global_scale);
  EXPECT_EQ(view.input_scale, stored.view.input_scale);
  const auto bytes = [](const std::byte* data, int64_t count) {
    return std::vector<std::byte>(data, data + count);
  };
  EXPECT_EQ(MadeUpRowBytes(view.made_up->data, view.n, view.data_bytes() / view.n),
            bytes(stored.view.data, stored.view.data_bytes()));
  if (view.scale_bytes() == 0) return;
  const int64_t scale_rows = (view.n + view.scale_block_n - 1) / view.scale_block_n;
  EXPECT_EQ(MadeUpRowBytes(view.made_up->scales, scale_rows, view.scale_bytes() / scale_rows),
            bytes(stored.view.scales, stored.view.scale_bytes()));
}

TEST(DummyCheckpoint, WeightsCanBeDescribedInsteadOfMade) {
  const std::string module = "model.layers.0.self_attn.q_proj";
  for (const WeightFormat format :
       {WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kFp8, WeightFormat::kBf16}) {
    SCOPED_TRACE(WeightFormatName(format));
    const auto checkpoint =
        MakeDummyCheckpoint(LlamaConfig(), {.linear_format = format,
                                            .activation_scales = format == WeightFormat::kNvfp4})
            .value();
    ExpectSameWeight(checkpoint->ReadLinear(module, 0, 0, formats::LinearBytes::kMadeUp).value(),
                     checkpoint->ReadLinear(module, 0, 0).value());
  }
  // Integers are repacked, so they are made.
  const auto integers =
      MakeDummyCheckpoint(LlamaConfig(), {.linear_format = WeightFormat::kInt4}).value();
  const auto read = integers->ReadLinear(module, 0, 0, formats::LinearBytes::kMadeUp).value();
  EXPECT_EQ(read.view.made_up, nullptr);
  EXPECT_NE(read.view.data, nullptr);
}

// Stacked, gate and up rows alternating.
TEST(DummyCheckpoint, ExpertsCanBeDescribedInsteadOfMade) {
  boost::json::object config;
  for (const Architecture& architecture : RegisteredArchitectures())
    if (architecture.architectures.front() == "GptOssForCausalLM")
      config = boost::json::parse(architecture.tiny_configs.front()).as_object();
  const auto checkpoint = MakeDummyCheckpoint(config).value();
  const int64_t f = config.at("intermediate_size").as_int64();
  const int64_t d = config.at("hidden_size").as_int64();
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    SCOPED_TRACE(projection);
    const bool down = std::string_view(projection) == "down_proj";
    const auto read = [&](formats::LinearBytes bytes) {
      return checkpoint
          ->ReadExpert("model.layers.0.mlp.experts", 1, projection, down ? d : f, down ? f : d,
                       {.interleaved = true, .transposed = {}}, bytes)
          .value();
    };
    ExpectSameWeight(read(formats::LinearBytes::kMadeUp), read(formats::LinearBytes::kChecked));
  }
}

// Bits per byte that its frequency leaves.
double Entropy(const std::vector<std::byte>& bytes) {
  std::vector<double> counts(256);
  for (const std::byte byte : bytes) ++counts[static_cast<size_t>(byte)];
  double bits = 0;
  for (const double count : counts) {
    const double share = count / static_cast<double>(bytes.size());
    if (count > 0) bits -= share * std::log2(share);
  }
  return bits;
}

TEST(DummyCheckpoint, CodesAndScalesAreOfFullEntropy) {
  json::object config = LlamaConfig();
  config["intermediate_size"] = 4096;
  const auto read = [&](WeightFormat format) {
    const auto dummy = MakeDummyCheckpoint(config, {.linear_format = format}).value();
    return std::pair(Bytes(dummy->Read("model.layers.0.mlp.up_proj.weight").value()),
                     Bytes(dummy->Read("model.layers.0.mlp.up_proj.weight_scale").value()));
  };
  const auto [nvfp4, scales] = read(WeightFormat::kNvfp4);
  EXPECT_NEAR(Entropy(nvfp4), 8.0, 0.01);
  EXPECT_NEAR(Entropy(scales), std::log2(127.0), 0.02);  // no NaN
  const auto [mxfp4, powers] = read(WeightFormat::kMxfp4);
  EXPECT_NEAR(Entropy(mxfp4), 8.0, 0.01);
  EXPECT_NEAR(Entropy(powers), 5.0, 0.02);
}

TEST(DummyCheckpoint, ValuesDependOnSeedAndNameAlone) {
  const auto a = MakeDummyCheckpoint(LlamaConfig(), {.seed = 1}).value();
  const auto b = MakeDummyCheckpoint(LlamaConfig(), {.seed = 1}).value();
  const auto c = MakeDummyCheckpoint(LlamaConfig(), {.seed = 2}).value();
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_EQ(Bytes(a->Read(name).value()), Bytes(b->Read(name).value()));
  EXPECT_NE(Bytes(a->Read(name).value()), Bytes(c->Read(name).value()));
  EXPECT_NE(Bytes(a->Read(name).value()),
            Bytes(a->Read("model.layers.1.self_attn.q_proj.weight").value()));
  const auto slice = a->ReadSlice(*a->Find(name), 17, 3).value();
  const std::vector<std::byte> whole = Bytes(a->Read(name).value());
  EXPECT_EQ(Bytes(slice),
            std::vector<std::byte>(whole.begin() + 17 * 512, whole.begin() + 20 * 512));
}

struct Format {
  const char* name;
  const char* quantization;
  WeightFormat linear;    // of up_proj
  WeightFormat excluded;  // of q_proj
  const char* companion;  // of up_proj
};

class DummyFormats : public ::testing::TestWithParam<Format> {};

TEST_P(DummyFormats, AreTheConfigsAndGiveFiniteLogits) {
  const json::object config = LlamaConfig(GetParam().quantization);
  const auto checkpoint = MakeDummyCheckpoint(config);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  const formats::Checkpoint& dummy = **checkpoint;
  EXPECT_TRUE(formats::CheckStoredFormats(dummy, ""));
  const std::string up = "model.layers.1.mlp.up_proj";
  EXPECT_EQ(dummy.LinearFormat(up).value(), GetParam().linear);
  EXPECT_EQ(dummy.LinearFormat("model.layers.1.self_attn.q_proj").value(), GetParam().excluded);
  EXPECT_EQ(dummy.LinearFormat("lm_head").value(), WeightFormat::kBf16);
  EXPECT_NE(dummy.Find(up + GetParam().companion), nullptr);

  // Deviation near 1/√K.
  const auto linear = dummy.ReadLinear(up, 384, 256);
  ASSERT_TRUE(linear) << linear.error().message();
  std::vector<float> row(256);
  double power = 0;
  for (int64_t i = 0; i < 384; ++i) {
    DequantizeRow(linear->view, i, row.data());
    for (const float value : row) power += double{value} * value;
  }
  EXPECT_NEAR(std::sqrt(power / 384), 1.0, 0.25);

  ThreadPool pool(1);
  const auto model = LoadModel(dummy, {.pool = &pool});
  ASSERT_TRUE(model) << model.error().message();
  ASSERT_TRUE((*model)->Prepare({.tokens = 64, .rows = 64}));
  auto kv = KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, 16, 4, 1);
  RunnerSequence sequence{.tokens = std::vector<int32_t>(40), .pages = {0, 1, 2, 3}};
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), 3);
  ModelRunner(**model, *kv).Run(sequence, 64);
  for (const auto& logits : sequence.logits) {
    for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DummyFormats,
    ::testing::Values(
        Format{"modelopt_nvfp4",
               R"({"quant_method": "modelopt", "quant_algo": "NVFP4",
                   "ignore": ["lm_head", "model.layers.*.self_attn.q_proj"]})",
               WeightFormat::kNvfp4, WeightFormat::kBf16, ".weight_scale_2"},
        Format{
            "modelopt_mixed",
            R"({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
                   "model.layers.1.mlp.up_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
                   "model.layers.*.self_attn*": {"quant_algo": "FP8"}}})",
            WeightFormat::kNvfp4, WeightFormat::kFp8, ".weight_scale"},
        Format{"modelopt_int4",
               R"({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128,
                   "ignore": ["lm_head", "*.q_proj"]})",
               WeightFormat::kInt4, WeightFormat::kBf16, ".weight_scale"},
        Format{"compressed_nvfp4",
               R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
                   "ignore": ["lm_head", "re:.*q_proj"], "config_groups": {"group_0": {
                   "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16},
                   "input_activations": {"num_bits": 4, "type": "float"}}}})",
               WeightFormat::kNvfp4, WeightFormat::kBf16, ".weight_global_scale"},
        Format{"compressed_int4",
               R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
                   "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"],
                   "weights": {"num_bits": 4, "type": "int", "group_size": 32}}}})",
               WeightFormat::kInt4, WeightFormat::kInt4, ".weight_shape"},
        Format{"compressed_mxfp4",
               R"({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized",
                   "ignore": ["lm_head", "re:.*q_proj"], "config_groups": {"group_0": {
                   "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float",
                   "group_size": 32, "scale_dtype": "torch.uint8"}}}})",
               WeightFormat::kMxfp4, WeightFormat::kBf16, ".weight_scale"},
        Format{"fp8_blocks", R"({"quant_method": "fp8", "weight_block_size": [128, 128]})",
               WeightFormat::kFp8, WeightFormat::kFp8, ".weight_scale_inv"},
        Format{"awq", R"({"quant_method": "awq", "bits": 4, "group_size": 64,
                          "modules_to_not_convert": ["q_proj"]})",
               WeightFormat::kInt4, WeightFormat::kBf16, ".qzeros"},
        Format{"gptq", R"({"quant_method": "gptq", "bits": 4, "group_size": 128})",
               WeightFormat::kInt4, WeightFormat::kInt4, ".g_idx"}),
    [](const auto& info) { return info.param.name; });

TEST(DummyCheckpoint, EveryLinearInFourBits) {
  const auto dummy = MakeDummyCheckpoint(
                         LlamaConfig(R"({"quant_method": "fp8", "weight_block_size": [128, 128]})"),
                         {.policy = DummyPolicy::kAllFourBit})
                         .value();
  EXPECT_TRUE(formats::CheckStoredFormats(*dummy, "nvfp4"));
  EXPECT_EQ(dummy->LinearFormat("lm_head").value(), WeightFormat::kNvfp4);
  EXPECT_EQ(dummy->LinearFormat("model.layers.0.self_attn.o_proj").value(), WeightFormat::kNvfp4);
  EXPECT_EQ(dummy->LinearFormat("model.embed_tokens").value(), WeightFormat::kBf16);
}

TEST(DummyCheckpoint, AFolderWithAConfigAloneIsEnoughAndTheFlagIsChecked) {
  const TempFolder folder;
  folder.Write("config.json", json::serialize(LlamaConfig()));
  folder.Write("hf_quant_config.json",
               R"({"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}})");
  const auto dummy = OpenDummyCheckpoint(folder.path(), {}, "nvfp4");
  ASSERT_TRUE(dummy) << dummy.error().message();
  EXPECT_EQ((*dummy)->LinearFormat("model.layers.0.mlp.up_proj").value(), WeightFormat::kNvfp4);
  EXPECT_EQ((*dummy)->ReadText("tokenizer.json").error().code(), Code::kNotFound);

  const auto refused = OpenDummyCheckpoint(folder.path(), {}, "awq");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("--quantization awq"), std::string::npos)
      << refused.error().message();
  EXPECT_EQ(OpenDummyCheckpoint(folder.path() + "/none").error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace nibble::models
