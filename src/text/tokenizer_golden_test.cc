// Token ids against Hugging Face `tokenizers` 0.23.3, and against `tiktoken` and `mistral-common`.
// tools/make_tokenizer_goldens.py and tools/make_ranked_tokenizer_goldens.py made the goldens; the
// published files are read from the shared data folder, and skipped where it is
// absent.

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <boost/json.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "text/testing/tokenizer_data.h"
#include "text/tokenizer.h"
#include "text/unicode/utf8.h"

namespace nibble::text {
namespace {

namespace json = boost::json;
const std::filesystem::path kGolden = TokenizerGoldens();

std::vector<int32_t> IdsOf(const json::value& list) {
  return json::value_to<std::vector<int32_t>>(list);
}

// CRC-32 as in zlib, so that the Python side can use its own.
uint32_t Crc32(std::string_view bytes, uint32_t crc) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0u);
      entries[i] = value;
    }
    return entries;
  }();
  crc = ~crc;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

uint32_t Crc32(const std::vector<int32_t>& ids, uint32_t crc) {
  static_assert(std::endian::native == std::endian::little);
  return Crc32({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)}, crc);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            bool add_special_tokens = false) {
  const auto ids = tokenizer.Encode(text, {.add_special_tokens = add_special_tokens});
  EXPECT_TRUE(ids) << ids.error().message();
  return ids ? *ids : std::vector<int32_t>{};
}

// Decodes token by token; every piece must be valid UTF-8 by itself.
std::string Stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                   bool skip_special_tokens) {
  Detokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = detokenizer.Push(id);
    EXPECT_EQ(FindInvalidUtf8(piece), piece.size()) << "a broken piece behind " << text;
    text += piece;
  }
  return text + detokenizer.Finish();
}

std::string CodePointText(char32_t first) {
  std::string text;
  for (char32_t c = first; c < first + 64; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    text += 'a';
    AppendUtf8(c, &text);
    text += "1 ";
  }
  return text;
}

void ExpectTextsEqual(const Tokenizer& tokenizer, const json::array& texts,
                      const json::object& golden) {
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text(texts[i].as_string());
    const std::vector<int32_t> ids = Encode(tokenizer, text);
    EXPECT_EQ(ids, IdsOf(golden.at("ids").at(i))) << "text " << i << ": " << text;
    EXPECT_EQ(tokenizer.Decode(ids), golden.at("decoded").at(i).as_string()) << "text " << i;
    EXPECT_EQ(Stream(tokenizer, ids, true), golden.at("decoded").at(i).as_string()) << text;
  }
  const json::array& special = golden.at("special_ids").as_array();
  for (size_t i = 0; i < special.size(); ++i) {
    EXPECT_EQ(Encode(tokenizer, std::string_view(texts[i].as_string()), true), IdsOf(special[i]));
  }
}

// Random ids: mostly broken UTF-8, and some ids past the end of the vocabulary.
void ExpectBrokenSequencesEqual(const Tokenizer& tokenizer, const json::object& golden) {
  EXPECT_EQ(tokenizer.vocab_size(), golden.at("vocab_size").as_int64());
  const json::array& broken = golden.at("broken").as_array();
  for (size_t seed = 0; seed < broken.size(); ++seed) {
    SplitMix64 random(seed);
    std::vector<int32_t> ids(60);
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(random.Below(static_cast<uint64_t>(tokenizer.vocab_size() + 3)));
    }
    EXPECT_EQ(tokenizer.Decode(ids, false), broken[seed].as_string()) << "seed " << seed;
    EXPECT_EQ(Stream(tokenizer, ids, false), broken[seed].as_string()) << "seed " << seed;
  }
}

void ExpectCodePointsEqual(const Tokenizer& tokenizer, const json::object& golden,
                           int64_t block_size) {
  const json::array& crcs = golden.at("code_point_crcs").as_array();
  for (size_t block = 0; block < crcs.size(); ++block) {
    uint32_t crc = 0;
    const auto begin = static_cast<char32_t>(block) * static_cast<char32_t>(block_size);
    for (char32_t first = begin; first < begin + static_cast<char32_t>(block_size); first += 64) {
      crc = Crc32(Encode(tokenizer, CodePointText(first)), crc);
    }
    EXPECT_EQ(crc, crcs[block].as_int64()) << "a code point from U+" << std::hex << begin;
  }
}

void ExpectGeneratedTextEqual(const Tokenizer& tokenizer, const json::object& golden,
                              const json::object& setup) {
  const json::object corpus = ReadJson(kGolden / "corpus.json");
  CorpusGenerator generator(corpus, static_cast<uint64_t>(setup.at("seed").as_int64()));
  const auto total = static_cast<size_t>(setup.at("total_bytes").as_int64());
  uint32_t text_crc = 0;
  uint32_t ids_crc = 0;
  size_t bytes = 0;
  size_t count = 0;
  while (bytes < total) {
    const std::string text = generator.Chunk();
    const std::vector<int32_t> ids = Encode(tokenizer, text);
    text_crc = Crc32(text, text_crc);
    ids_crc = Crc32(ids, ids_crc);
    bytes += text.size();
    count += ids.size();
  }
  const json::object& generated = golden.at("generated").as_object();
  ASSERT_EQ(text_crc, generated.at("text_crc").as_int64()) << "the generators differ";
  EXPECT_EQ(count, static_cast<size_t>(generated.at("ids").as_int64()));
  EXPECT_EQ(ids_crc, generated.at("ids_crc").as_int64());
}

void ExpectEqualToGolden(const TokenizerFiles& files, const json::array& texts,
                         const std::filesystem::path& golden_path) {
  const auto tokenizer = Tokenizer::Load(files);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  const json::object setup = ReadJson(kGolden / "texts.json");
  const json::object golden = ReadJson(golden_path);
  ExpectTextsEqual(*tokenizer, texts, golden);
  ExpectBrokenSequencesEqual(*tokenizer, golden);
  ExpectCodePointsEqual(*tokenizer, golden, setup.at("block").as_int64());
  ExpectGeneratedTextEqual(*tokenizer, golden, setup);
}

void ExpectEqualToGolden(const std::string& tokenizer_json,
                         const std::filesystem::path& golden_path) {
  ExpectEqualToGolden({.tokenizer_json = tokenizer_json},
                      ReadJson(kGolden / "texts.json").at("texts").as_array(), golden_path);
}

class TokenizerFamily : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerFamily, EqualsTokenizers) {
  ExpectEqualToGolden(ReadText(kGolden / "families" / (GetParam() + ".json")),
                      kGolden / "results" / (GetParam() + ".json"));
}

INSTANTIATE_TEST_SUITE_P(Golden, TokenizerFamily, testing::ValuesIn(NamesIn(kGolden / "results")),
                         [](const auto& info) { return info.param; });

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PublishedTokenizer);
class PublishedTokenizer : public testing::TestWithParam<std::string> {};

TEST_P(PublishedTokenizer, EqualsTokenizers) {
  const std::string content = ReadPublishedTokenizer(GetParam());
  if (content.empty()) {
    GTEST_SKIP() << "no data/tokenizers/" << GetParam() << "/tokenizer.json.xz in ../shared";
  }
  ExpectEqualToGolden(content, kGolden / "published" / (GetParam() + ".json"));
}

INSTANTIATE_TEST_SUITE_P(Golden, PublishedTokenizer,
                         testing::ValuesIn(NamesIn(kGolden / "published")),
                         [](const auto& info) { return info.param; });

// ---- tiktoken.model and tekken.json, against `tiktoken` and `mistral-common` ----

json::array RankedTexts() {
  return ReadJson(kGolden / "ranked" / "texts.json").at("texts").as_array();
}

TEST(RankedTokenizer, TiktokenModelEqualsTiktoken) {
  const std::filesystem::path folder = kGolden / "ranked" / "kimi";
  ExpectEqualToGolden({.tiktoken_model = ReadText(folder / "tiktoken.model"),
                       .tokenizer_config_json = ReadText(folder / "tokenizer_config.json")},
                      RankedTexts(), folder / "results.json");
}

TEST(RankedTokenizer, TekkenEqualsMistralCommon) {
  const std::filesystem::path folder = kGolden / "ranked" / "tekken";
  ExpectEqualToGolden({.tekken_json = ReadText(folder / "tekken.json")}, RankedTexts(),
                      folder / "results.json");
}

TEST(RankedTokenizer, PublishedTekkenEqualsMistralCommon) {
  const std::string tekken = ReadPublishedTokenizer("tekken_240911", "tekken.json");
  if (tekken.empty()) {
    GTEST_SKIP() << "no data/tokenizers/tekken_240911/tekken.json.xz in ../shared";
  }
  ExpectEqualToGolden({.tekken_json = tekken}, RankedTexts(),
                      kGolden / "ranked" / "published" / "tekken_240911.json");
}

// The tokenizer.json of a case: the base model with what the case changes.
std::string BuildComponentCase(const json::object& golden, const json::object& spec) {
  const bool byte_level = spec.contains("byte_level");
  json::object model = golden.at(byte_level ? "byte_model" : "character_model").as_object();
  if (const auto* changes = spec.if_contains("model")) {
    for (const auto& [key, value] : changes->as_object()) model[key] = value;
  }
  json::object& vocabulary = model["vocab"].as_object();
  if (const auto* more = spec.if_contains("vocabulary")) {
    for (const auto& token : more->as_array()) {
      vocabulary.emplace(token.as_string(), vocabulary.size());
    }
  }
  if (spec.contains("text_merges")) {
    json::array merges;
    for (const auto& merge : model.at("merges").as_array()) {
      const std::string left(merge.at(0).as_string());
      const std::string right(merge.at(1).as_string());
      if ((left + right).find(' ') == std::string::npos) merges.emplace_back(left + " " + right);
    }
    model["merges"] = merges;
  }
  json::array added;
  if (const auto* tokens = spec.if_contains("added_tokens")) {
    size_t next_id = vocabulary.size();
    for (json::value token : tokens->as_array()) {
      const auto* known = vocabulary.if_contains(token.at("content").as_string());
      token.as_object()["id"] = known != nullptr ? known->to_number<size_t>() : next_id++;
      added.push_back(std::move(token));
    }
  }
  json::object result{{"added_tokens", added}, {"model", model}};
  for (const char* key : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    if (const auto* value = spec.if_contains(key)) result[key] = *value;
  }
  return json::serialize(result);
}

TEST(TokenizerComponents, EqualTokenizers) {
  const json::object golden = ReadJson(kGolden / "components.json");
  const json::array& texts = golden.at("texts").as_array();
  for (const json::value& entry : golden.at("cases").as_array()) {
    const json::object& expected = entry.as_object();
    SCOPED_TRACE(std::string(expected.at("name").as_string()));
    const auto tokenizer = Tokenizer::Load(
        {.tokenizer_json = BuildComponentCase(golden, expected.at("case").as_object())});
    ASSERT_TRUE(tokenizer) << tokenizer.error().message();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(Encode(*tokenizer, std::string_view(texts[i].as_string()), true),
                IdsOf(expected.at("ids").at(i)))
          << "text " << i << ": " << texts[i].as_string();
    }
    if (!expected.contains("streams")) continue;
    const json::array& streams = expected.at("streams").as_array();
    for (size_t i = 0; i < streams.size(); ++i) {
      const std::string decoded(expected.at("decoded").at(i).as_string());
      EXPECT_EQ(tokenizer->Decode(IdsOf(streams[i])), decoded) << "stream " << i;
      EXPECT_EQ(Stream(*tokenizer, IdsOf(streams[i]), true), decoded) << "stream " << i;
    }
  }
}

// decode(encode(x)) is x for byte-level models without a normalizer.
TEST(TokenizerProperty, RandomUnicodeSurvivesTheRoundTrip) {
  for (const char* name : {"gpt2", "llama3", "o200k", "deepseek", "smollm2", "tekken"}) {
    const auto tokenizer = Tokenizer::Load(
        {.tokenizer_json = ReadText(kGolden / "families" / (std::string(name) + ".json"))});
    ASSERT_TRUE(tokenizer) << tokenizer.error().message();
    SplitMix64 random(42);
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (uint64_t n = random.Below(60); n > 0; --n) {
        const uint64_t planes = random.Below(4) == 0   ? 0x110000
                                : random.Below(2) == 0 ? 0x3000
                                                       : 0x80;
        const auto c = static_cast<char32_t>(random.Below(planes));
        if (c < 0xD800 || c >= 0xE000) AppendUtf8(c, &text);
      }
      const std::vector<int32_t> ids = Encode(*tokenizer, text);
      EXPECT_EQ(tokenizer->Decode(ids, false), text);
      EXPECT_EQ(Stream(*tokenizer, ids, false), text);
      std::string bytes;
      for (const int32_t id : ids) bytes += tokenizer->TokenBytes(id);
      EXPECT_EQ(bytes, text) << name;
    }
  }
}

}  // namespace
}  // namespace nibble::text
