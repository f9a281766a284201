// The importer against other readers of the same files (tools/make_gguf_goldens.py): PyPI's gguf
// for block types, transformers for names, shapes, row order and config.
#include "formats/gguf.h"

#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <cstring>

#include "base/file.h"
#include "formats/gguf_pretokenizers.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "testing/gguf_writer.h"
#include "testing/golden.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

std::string GoldenPath(const std::string& name) { return nibble::GoldenPath("gguf/" + name); }

const json::object& Expected() {
  static const json::value expected = json::parse(*ReadFile(GoldenPath("expected.json")));
  return expected.as_object();
}

std::string Sha256(const void* data, size_t size) {
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(static_cast<const uint8_t*>(data), size, digest);
  std::string hex;
  for (const uint8_t byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

// A BF16, F16 or F32 tensor rounded to BF16.
std::vector<uint16_t> AsBf16(const TensorView& view) {
  std::vector<uint16_t> values(static_cast<size_t>(view.shape.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (view.dtype == DType::kF32) {
      float value;
      std::memcpy(&value, view.data + 4 * i, 4);
      values[i] = Bf16FromFloat(value);
      continue;
    }
    std::memcpy(&values[i], view.data + 2 * i, 2);
    if (view.dtype == DType::kF16) values[i] = Bf16FromFloat(F16ToFloat(values[i]));
  }
  return values;
}

std::unique_ptr<Checkpoint> Open(const std::string& name) {
  auto checkpoint = OpenGguf(GoldenPath(name));
  EXPECT_TRUE(checkpoint) << checkpoint.error().message();
  return checkpoint ? std::move(*checkpoint) : nullptr;
}

json::object Text(const Checkpoint& checkpoint, std::string_view name) {
  const auto text = checkpoint.ReadText(name);
  EXPECT_TRUE(text) << text.error().message();
  return text ? json::parse(*text).as_object() : json::object();
}

class GgufBlocks : public testing::TestWithParam<const char*> {};

TEST_P(GgufBlocks, EqualReferenceBitForBit) {
  const auto file = GgufFile::Open(GoldenPath("blocks.gguf"));
  ASSERT_TRUE(file) << file.error().message();
  const GgufTensor* stored = (*file)->FindTensor(GetParam());
  const GgufTensor* expected = (*file)->FindTensor(std::string(GetParam()) + ".expected");
  ASSERT_TRUE(stored != nullptr && expected != nullptr);
  EXPECT_EQ(InfoOf(stored->type).name, GetParam());
  std::vector<float> values(static_cast<size_t>(stored->shape.elements()));
  DequantizeGgml(stored->type, stored->bytes.data(), stored->shape.elements(), values.data());
  ASSERT_EQ(expected->bytes.size(), values.size() * sizeof(float));
  std::vector<float> reference(values.size());
  std::memcpy(reference.data(), expected->bytes.data(), expected->bytes.size());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], reference[i]) << i;

  std::vector<uint16_t> rounded(values.size());
  DequantizeGgmlToBf16(stored->type, stored->bytes.data(), stored->shape.elements(),
                       rounded.data());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(rounded[i], Bf16FromFloat(values[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(All, GgufBlocks,
                         testing::Values("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0",
                                         "Q5_1", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "NVFP4"),
                         [](const auto& info) { return std::string(info.param); });

class GgufModels : public testing::TestWithParam<const char*> {};

TEST_P(GgufModels, TensorsEqualTransformersImport) {
  const auto checkpoint = Open(std::string(GetParam()) + ".gguf");
  ASSERT_NE(checkpoint, nullptr);
  const json::object& tensors = Expected().at(GetParam()).at("tensors").as_object();
  ASSERT_EQ(checkpoint->tensors().size(), tensors.size());
  for (const TensorEntry& entry : checkpoint->tensors()) {
    ASSERT_TRUE(tensors.contains(entry.name)) << entry.name;
    const json::object& expected = tensors.at(entry.name).as_object();
    json::array shape(entry.shape.dims().begin(), entry.shape.dims().end());
    EXPECT_EQ(shape, expected.at("shape")) << entry.name;
    const auto data = checkpoint->Read(entry);
    ASSERT_TRUE(data) << data.error().message();
    const std::vector<uint16_t> values = AsBf16(data->view);
    EXPECT_EQ(Sha256(values.data(), values.size() * 2), expected.at("sha256").as_string())
        << entry.name << " " << entry.stored_as;
  }
}

TEST_P(GgufModels, ConfigEqualsTransformersImport) {
  const auto checkpoint = Open(std::string(GetParam()) + ".gguf");
  ASSERT_NE(checkpoint, nullptr);
  for (const auto& [key, value] : Expected().at(GetParam()).at("config").as_object()) {
    EXPECT_EQ(checkpoint->config().at(key), value) << key;
  }
  EXPECT_EQ(Text(*checkpoint, "config.json"), checkpoint->config());
}

INSTANTIATE_TEST_SUITE_P(All, GgufModels, testing::Values("llama", "qwen2", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Gguf, SplitFileOpensFromAnyPart) {
  const auto whole = Open("llama.gguf");
  for (const char* part : {"llama-split-00001-of-00002.gguf", "llama-split-00002-of-00002.gguf"}) {
    const auto split = Open(part);
    ASSERT_NE(split, nullptr);
    EXPECT_EQ(split->config(), whole->config());
    ASSERT_EQ(split->tensors().size(), whole->tensors().size());
    for (const TensorEntry& entry : whole->tensors()) {
      const auto a = whole->Read(entry);
      const auto b = split->Read(entry.name);
      ASSERT_TRUE(a && b);
      EXPECT_EQ(0, std::memcmp(a->view.data, b->view.data, a->view.bytes())) << entry.name;
    }
  }
}

TEST(Gguf, RopeFrequenciesBecomeLlama3Scaling) {
  const auto checkpoint = Open("llama.gguf");
  ASSERT_NE(checkpoint, nullptr);
  const json::object& scaling = checkpoint->config().at("rope_scaling").as_object();
  EXPECT_EQ(scaling.at("rope_type"), "llama3");
  EXPECT_EQ(scaling.at("factor").to_number<double>(), 8.0);
  EXPECT_EQ(scaling.at("original_max_position_embeddings"), 8192);
  EXPECT_EQ(checkpoint->Find("rope_freqs.weight"), nullptr);
}

TEST(Gguf, PlainTensorsAreViewsOfTheFile) {
  const auto checkpoint = Open("qwen2.gguf");
  const auto first = checkpoint->Read("model.norm.weight");
  const auto second = checkpoint->Read("model.norm.weight");
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->view.data, second->view.data);
  EXPECT_EQ(first->view.dtype, DType::kF32);
}

TEST(Gguf, FourBitWeightsKeepTheirCodes) {
  const auto checkpoint = Open("fp4.gguf");
  ASSERT_NE(checkpoint, nullptr);
  for (const auto& [name, hash] : Expected().at("fp4").as_object()) {
    const auto data = checkpoint->Read(std::string_view(name));
    ASSERT_TRUE(data) << data.error().message();
    EXPECT_EQ(Sha256(data->view.data, data->view.bytes()), hash.as_string()) << name;
  }
  const auto query = checkpoint->ReadLinear("model.layers.1.self_attn.q_proj", 64, 256);
  ASSERT_TRUE(query) << query.error().message();
  EXPECT_EQ(query->view.format, WeightFormat::kNvfp4);
  EXPECT_EQ(query->view.global_scale, 0.0625f);
  EXPECT_EQ(query->view.input_scale, 0.25f);
  const auto value = checkpoint->ReadLinear("model.layers.1.self_attn.v_proj", 32, 256);
  ASSERT_TRUE(value) << value.error().message();
  EXPECT_EQ(value->view.global_scale, 1.0f);
  const auto gate = checkpoint->ReadLinear("model.layers.0.mlp.gate_proj", 64, 256);
  ASSERT_TRUE(gate) << gate.error().message();
  EXPECT_EQ(gate->view.format, WeightFormat::kMxfp4);

  // The embedding has no 4-bit kernel: dequantised, its tensor scale folded in.
  const auto embedding = checkpoint->Read("model.embed_tokens.weight");
  ASSERT_TRUE(embedding);
  EXPECT_EQ(embedding->view.dtype, DType::kBF16);
  const auto file = GgufFile::Open(GoldenPath("fp4.gguf"));
  const GgufTensor* stored = (*file)->FindTensor("token_embd.weight");
  std::vector<float> unscaled(256);
  DequantizeGgml(GgmlType::kNvfp4, stored->bytes.data(), 256, unscaled.data());
  const std::vector<uint16_t> values = AsBf16(embedding->view);
  for (size_t i = 0; i < unscaled.size(); ++i) {
    ASSERT_EQ(values[i], Bf16FromFloat(unscaled[i] * 0.5f));
  }
}

TEST(Gguf, ByteLevelTokenizer) {
  const auto checkpoint = Open("qwen2.gguf");
  const json::object tokenizer = Text(*checkpoint, "tokenizer.json");
  EXPECT_EQ(tokenizer.at("normalizer").at("type"), "NFC");
  EXPECT_EQ(tokenizer.at("decoder").at("type"), "ByteLevel");
  const json::object& model = tokenizer.at("model").as_object();
  EXPECT_EQ(model.at("merges").at(6), (json::array{"\u0120w", "or"}));
  // Added tokens at the end stay outside the model's vocabulary; padding rows vanish.
  const json::object& vocab = model.at("vocab").as_object();
  EXPECT_EQ(vocab.size(), 263u);
  EXPECT_EQ(vocab.at("hello"), 259);
  EXPECT_FALSE(vocab.contains("[PAD0]"));
  const json::array& added = tokenizer.at("added_tokens").as_array();
  ASSERT_EQ(added.size(), 4u);
  EXPECT_EQ(added[2].at("content"), "<|im_end|>");
  EXPECT_EQ(added[2].at("id"), 265);
  EXPECT_EQ(added[2].at("special"), true);
  EXPECT_EQ(added[3].at("content"), "<think>");
  EXPECT_EQ(added[3].at("special"), false);
  EXPECT_EQ(tokenizer.at("post_processor"), nullptr);

  const json::object config = Text(*checkpoint, "tokenizer_config.json");
  EXPECT_EQ(config.at("eos_token"), "<|im_end|>");
  EXPECT_EQ(config.at("unk_token"), nullptr);
  EXPECT_TRUE(config.at("chat_template").as_string().starts_with("{% for m in messages %}"));
  EXPECT_EQ(StopTokenIds(*checkpoint), (std::vector<int32_t>{265, 263}));
}

TEST(Gguf, SentencePieceTokenizer) {
  const auto checkpoint = Open("llama.gguf");
  const json::object tokenizer = Text(*checkpoint, "tokenizer.json");
  const json::object& model = tokenizer.at("model").as_object();
  EXPECT_EQ(model.at("merges"), Expected().at("llama").at("merges"));
  EXPECT_EQ(model.at("byte_fallback"), true);
  EXPECT_EQ(model.at("fuse_unk"), true);
  EXPECT_EQ(model.at("unk_token"), "<unk>");
  EXPECT_EQ(model.at("vocab").as_object().size(), 283u);
  EXPECT_EQ(tokenizer.at("normalizer").at("normalizers").at(0).at("type"), "Prepend");
  EXPECT_EQ(tokenizer.at("decoder").at("decoders").as_array().size(), 4u);
  EXPECT_EQ(tokenizer.at("post_processor").at("single").at(0).at("SpecialToken").at("id"), "<s>");
  EXPECT_EQ(tokenizer.at("added_tokens").at(0).at("special"), true);
  EXPECT_EQ(tokenizer.at("added_tokens").at(3).at("content"), "<tool>");
  EXPECT_EQ(Text(*checkpoint, "tokenizer_config.json").at("add_bos_token"), true);
}

TEST(Gguf, UnknownTextIsNotFound) {
  const auto text = Open("llama.gguf")->ReadText("hf_quant_config.json");
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), Code::kNotFound);
}

// A one-layer llama without tensors but for the embedding; changes make it wrong.
GgufWriter TinyLlama(std::string_view architecture = "llama") {
  GgufWriter writer;
  writer.AddString("general.architecture", architecture);
  const std::string prefix = std::string(architecture) + ".";
  writer.AddU32(prefix + "block_count", 1);
  writer.AddU32(prefix + "embedding_length", 8);
  writer.AddU32(prefix + "feed_forward_length", 16);
  writer.AddU32(prefix + "attention.head_count", 2);
  writer.AddU32(prefix + "context_length", 64);
  writer.AddF32(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  writer.AddTensor("token_embd.weight", {8, 3}, 0, std::string(96, 0));
  return writer;
}

void AddVocabulary(GgufWriter& writer, std::string_view pre, std::vector<std::string> tokens) {
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", pre);
  writer.AddStrings("tokenizer.ggml.tokens", tokens);
  writer.AddStrings("tokenizer.ggml.merges", {"a b"});
}

Result<std::unique_ptr<Checkpoint>> Import(const std::string& bytes) {
  NIBBLE_ASSIGN(auto file, GgufFile::Parse(std::as_bytes(std::span(bytes)), "tiny.gguf", nullptr));
  return ImportGguf({std::move(file)}, "tiny.gguf");
}

void ExpectRefused(const GgufWriter& writer, Code code, std::string_view message) {
  const std::string bytes = writer.Build();
  const auto checkpoint = Import(bytes);
  ASSERT_FALSE(checkpoint);
  EXPECT_EQ(checkpoint.error().code(), code);
  EXPECT_NE(checkpoint.error().message().find(message), std::string::npos)
      << checkpoint.error().message();
}

TEST(GgufRefuses, OtherArchitecturesByName) {
  ExpectRefused(
      TinyLlama("gemma3"), Code::kUnsupported,
      "architecture \"gemma3\" is not imported from GGUF; supported: llama (with Mistral), "
      "qwen2, qwen3");
}

TEST(GgufRefuses, MixturesOfExperts) {
  GgufWriter writer = TinyLlama();
  writer.AddU32("llama.expert_count", 8);
  ExpectRefused(writer, Code::kUnsupported, "llama.expert_count is 8");
}

TEST(GgufRefuses, TensorsWithoutAPlace) {
  for (const char* name :
       {"blk.1.attn_q.weight", "blk.00.attn_q.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_q",
        "blk.0.ffn_gate_exps.weight", "mystery.weight"}) {
    GgufWriter writer = TinyLlama();
    writer.AddTensor(name, {8, 8}, 0, std::string(256, 0));
    ExpectRefused(writer, Code::kUnsupported, fmt::format("tensor \"{}\" has no place", name));
  }
}

TEST(GgufRefuses, WrongShapes) {
  GgufWriter writer = TinyLlama();
  writer.AddTensor("blk.0.ffn_up.weight", {8, 15}, 0, std::string(480, 0));
  ExpectRefused(writer, Code::kCorruption,
                "tensor \"blk.0.ffn_up.weight\" has shape [15, 8], expected [16, 8]");
}

TEST(GgufRefuses, RopeFrequenciesOfAnotherRule) {
  GgufWriter writer = TinyLlama();
  const float divisors[] = {1.5f, 3.0f};
  writer.AddTensor("rope_freqs.weight", {2}, 0,
                   {reinterpret_cast<const char*>(divisors), sizeof(divisors)});
  ExpectRefused(writer, Code::kUnsupported, "rope_freqs.weight' [0] is 1.5");
}

TEST(GgufRefuses, PartialRotation) {
  GgufWriter writer = TinyLlama();
  writer.AddU32("llama.rope.dimension_count", 2);
  ExpectRefused(writer, Code::kUnsupported, "rope dimensions 2");
}

TEST(Gguf, SlidingWindowMakesItMistral) {
  GgufWriter writer = TinyLlama();
  writer.AddU32("llama.attention.sliding_window", 16);
  const std::string bytes = writer.Build();
  const auto checkpoint = Import(bytes);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  EXPECT_EQ((*checkpoint)->config().at("architectures").at(0), "MistralForCausalLM");
  EXPECT_EQ((*checkpoint)->config().at("sliding_window"), 16);
}

void ExpectTokenizerRefused(const GgufWriter& writer, std::string_view message) {
  const std::string bytes = writer.Build();
  const auto checkpoint = Import(bytes);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  const auto text = (*checkpoint)->ReadText("tokenizer.json");
  ASSERT_FALSE(text);
  EXPECT_NE(text.error().message().find(message), std::string::npos) << text.error().message();
}

TEST(GgufRefuses, UnknownPreTokenizers) {
  GgufWriter writer = TinyLlama();
  AddVocabulary(writer, "klingon", {"a", "b", "ab"});
  ExpectTokenizerRefused(writer, "tokenizer.ggml.pre is \"klingon\", an unknown pre-tokenizer");
}

TEST(GgufRefuses, BadVocabularies) {
  GgufWriter repeated = TinyLlama();
  AddVocabulary(repeated, "gpt-2", {"a", "b", "a"});
  ExpectTokenizerRefused(repeated, "token \"a\" has the ids 0 and 2");

  GgufWriter broken = TinyLlama();
  AddVocabulary(broken, "gpt-2", {"a", "\xC3(", "ab"});
  ExpectTokenizerRefused(broken, "token 1 is not valid UTF-8");

  GgufWriter range = TinyLlama();
  AddVocabulary(range, "gpt-2", {"a", "b", "ab"});
  range.AddU32("tokenizer.ggml.bos_token_id", 3);
  const std::string bytes = range.Build();
  const auto checkpoint = Import(bytes);
  ASSERT_FALSE(checkpoint);
  EXPECT_NE(checkpoint.error().message().find("bos_token_id is 3, expected 0 to 2"),
            std::string::npos);
}

TEST(GgufPreTokenizers, AreSequencesThatEndInBytes) {
  for (const char* name : {"llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3", "smollm"}) {
    const auto pre = FindGgufPreTokenizer(name);
    ASSERT_TRUE(pre) << name;
    const json::array& steps = pre->pre_tokenizer.at("pretokenizers").as_array();
    EXPECT_EQ(steps[steps.size() - 1].at("type"), "ByteLevel") << name;
  }
  EXPECT_FALSE(FindGgufPreTokenizer("klingon"));
}

}  // namespace
}  // namespace nibble::formats
