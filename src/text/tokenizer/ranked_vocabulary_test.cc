// Errors and special tokens of tekken.json and tiktoken.model; ids are compared with the libraries
// in tokenizer_golden_test.cc.
#include "text/tokenizer/ranked_vocabulary.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "text/testing/tokenizer_data.h"
#include "text/tokenizer.h"
#include "text/tokenizer/base64.h"

namespace nibble::text {
namespace {

namespace json = boost::json;

json::object Tekken() { return ReadJson(TokenizerGoldens() / "ranked" / "tekken" / "tekken.json"); }

std::string KimiModel() { return ReadText(TokenizerGoldens() / "ranked" / "kimi/tiktoken.model"); }

json::object KimiConfig() {
  return ReadJson(TokenizerGoldens() / "ranked" / "kimi" / "tokenizer_config.json");
}

void ExpectError(const Result<RankedVocabulary>& result, std::string_view part) {
  ASSERT_FALSE(result) << part;
  EXPECT_NE(result.error().message().find(part), std::string::npos) << result.error().message();
}

TEST(Base64, DecodesWhatIsBase64) {
  EXPECT_EQ(DecodeBase64(""), "");
  EXPECT_EQ(DecodeBase64("YQ=="), "a");
  EXPECT_EQ(DecodeBase64("YWI="), "ab");
  EXPECT_EQ(DecodeBase64("+/+A"), "\xFB\xFF\x80");
  for (const char* wrong : {"Y", "YQ", "YQ=", "YQ===", "Y=Q=", "Y Q=", "====", "YQ==YQ=="}) {
    EXPECT_EQ(DecodeBase64(wrong), std::nullopt) << wrong;
  }
}

TEST(RankedVocabulary, TekkenSpecialTokensComeFirst) {
  const auto tokenizer = Tokenizer::Load({.tekken_json = json::serialize(Tekken())});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->vocab_size(), 1920);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->TokenId("[TOOL_CALLS]"), 5);
  EXPECT_EQ(tokenizer->TokenText(19), "<SPECIAL_19>");
  EXPECT_TRUE(tokenizer->IsSpecial(19));
  EXPECT_FALSE(tokenizer->IsSpecial(20));
  EXPECT_EQ(tokenizer->TokenBytes(20), std::string(1, '\0'));
}

TEST(RankedVocabulary, TekkenWithoutListOfSpecialTokens) {
  json::object tekken = Tekken();
  tekken.erase("special_tokens");
  const auto tokenizer = Tokenizer::Load({.tekken_json = json::serialize(tekken)});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->TokenId("[TOOL_CALLS]"), 9);
  EXPECT_EQ(tokenizer->TokenId("[TOOL_CONTENT]"), 19);
}

TEST(RankedVocabulary, BrokenTekkenFiles) {
  const auto expect = [](const std::function<void(json::object&)>& change, std::string_view part) {
    json::object tekken = Tekken();
    change(tekken);
    ExpectError(ReadTekken(json::serialize(tekken)), part);
  };
  ExpectError(ReadTekken("{"), "tekken.json is not valid JSON");
  ExpectError(ReadTekken("[]"), "must hold an object");
  expect([](auto& t) { t["config"].as_object().erase("pattern"); }, "config.pattern");
  expect([](auto& t) { t["config"].at("default_vocab_size") = 3; }, "default_vocab_size");
  expect([](auto& t) { t["config"].at("default_vocab_size") = 1 << 22; }, "vocab has 2000 tokens");
  expect([](auto& t) { t["config"].at("default_num_special_tokens") = 5; }, "9 special tokens");
  expect([](auto& t) { t["vocab"].at(300).at("rank") = 7; }, "entry 300");
  expect([](auto& t) { t["vocab"].at(300).at("token_bytes") = "?"; }, "token 300");
  expect([](auto& t) { t["vocab"].at(300).at("token_bytes") = "YQ=="; }, "occur twice");
  expect([](auto& t) { t["vocab"].at(97).at("token_bytes") = "enp6enp6"; }, "byte 0x61");
  expect([](auto& t) { t["special_tokens"].at(1).at("rank") = 5; }, "entry 1");
}

TEST(RankedVocabulary, KimiSpecialTokensFollowTheRanks) {
  const auto tokenizer = Tokenizer::Load(
      {.tiktoken_model = KimiModel(), .tokenizer_config_json = json::serialize(KimiConfig())});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->vocab_size(), 2256);
  EXPECT_EQ(tokenizer->bos_id(), 2000);
  EXPECT_EQ(tokenizer->eos_id(), 2001);
  EXPECT_EQ(tokenizer->TokenText(2005), "<|reserved_token_2005|>");
  EXPECT_TRUE(tokenizer->IsSpecial(2005));
  EXPECT_FALSE(tokenizer->IsSpecial(*tokenizer->TokenId("<|tool_calls_section_begin|>")));
}

TEST(RankedVocabulary, BrokenTiktokenFiles) {
  const std::string config = json::serialize(KimiConfig());
  ExpectError(ReadTiktokenModel("YQ==", config), "line 1");
  ExpectError(ReadTiktokenModel("YQ== x", config), "line 1");
  ExpectError(ReadTiktokenModel("YQ== 1\nYg== -2", config), "line 2");
  ExpectError(ReadTiktokenModel("*Q== 1", config), "token 1");
  ExpectError(ReadTiktokenModel("YQ== 1\nYg== 1", config), "rank 1");
  ExpectError(ReadTiktokenModel("YQ== 1\nYQ== 2", config), "rank 2");
  ExpectError(ReadTiktokenModel("YQ== 1\n", config), "no token for byte 0x00");
  ExpectError(ReadTiktokenModel(KimiModel(), ""), "needs tokenizer_config.json");
  ExpectError(ReadTiktokenModel(KimiModel(), "{}"), "tokenizer_class null");
  ExpectError(ReadTiktokenModel(KimiModel(), R"({"tokenizer_class": "XTokenizer"})"),
              "\"XTokenizer\"");
  ExpectError(ReadTiktokenModel(KimiModel(), R"({"tokenizer_class": "TikTokenTokenizer"})"),
              "added_tokens_decoder");
  json::object wrong = KimiConfig();
  wrong["added_tokens_decoder"].as_object()["7"] = {{"content", "[X]"}};
  ExpectError(ReadTiktokenModel(KimiModel(), json::serialize(wrong)), "from 2000");
}

TEST(Tokenizer, FilesInOrder) {
  const auto none = Tokenizer::Load({});
  ASSERT_FALSE(none);
  for (const char* name : {"tokenizer.json", "tekken.json", "tiktoken.model"}) {
    EXPECT_NE(none.error().message().find(name), std::string::npos);
  }
  const std::string bpe = ReadText(TokenizerGoldens() / "families" / "gpt2.json");
  const std::string config = json::serialize(KimiConfig());
  const auto first = Tokenizer::Load({.tokenizer_json = bpe,
                                      .tekken_json = json::serialize(Tekken()),
                                      .tiktoken_model = KimiModel()});
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->TokenId("<|im_start|>"));
  const auto second =
      Tokenizer::Load({.tekken_json = json::serialize(Tekken()), .tiktoken_model = KimiModel()});
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->TokenId("[INST]"));
}

TEST(Tokenizer, MustFitTheModel) {
  const auto tokenizer = Tokenizer::Load(
      {.tiktoken_model = KimiModel(), .tokenizer_config_json = json::serialize(KimiConfig())});
  ASSERT_TRUE(tokenizer);
  EXPECT_TRUE(tokenizer->CheckFits(2256));
  EXPECT_TRUE(tokenizer->CheckFits(4096));         // padded rows
  EXPECT_TRUE(tokenizer->CheckFits(2200));         // added tokens that the model has not
  for (const int64_t size : {2001, 2000, 1000}) {  // without eos, bos, tokens of the vocabulary
    const Status fits = tokenizer->CheckFits(size);
    ASSERT_FALSE(fits) << size;
    EXPECT_NE(fits.error().message().find("id 2001"), std::string::npos);
    EXPECT_NE(fits.error().message().find(std::to_string(size)), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble::text
