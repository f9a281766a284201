#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble::text {
namespace {

// A byte-level tokenizer over the bytes a, b, c and space with two merges and two added tokens.
constexpr const char* kTiny = R"({
  "added_tokens": [
    {"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 8, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": false}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
  "model": {"type": "BPE", "unk_token": null,
    "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "Ġab": 5, "Ã": 6},
    "merges": ["a b", ["Ġ", "ab"]]}})";

Tokenizer Tiny(const std::string& config = "") {
  auto tokenizer = Tokenizer::Load({.tokenizer_json = kTiny, .tokenizer_config_json = config});
  EXPECT_TRUE(tokenizer) << tokenizer.error().message();
  return std::move(*tokenizer);
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text,
                         EncodeOptions options = {.add_special_tokens = false}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids) << ids.error().message();
  return ids ? *ids : std::vector<int32_t>{};
}

using Expected = std::vector<int32_t>;

TEST(Tokenizer, EncodesAndDecodes) {
  const Tokenizer tokenizer = Tiny();
  EXPECT_EQ(Ids(tokenizer, "ab abc"), (Expected{4, 5, 2}));
  EXPECT_EQ(Ids(tokenizer, ""), Expected{});
  EXPECT_EQ(tokenizer.Decode(Expected{4, 5, 2}), "ab abc");
  EXPECT_EQ(tokenizer.vocab_size(), 9);
}

TEST(Tokenizer, PostProcessorRunsOnRequestOnly) {
  const Tokenizer tokenizer = Tiny();
  EXPECT_EQ(Ids(tokenizer, "ab", {}), (Expected{7, 4}));
  EXPECT_EQ(Ids(tokenizer, "", {}), (Expected{7}));
  EXPECT_EQ(tokenizer.bos_id(), 7);
  EXPECT_EQ(tokenizer.eos_id(), std::nullopt);
}

TEST(Tokenizer, ConfigNamesBosAndEos) {
  const Tokenizer tokenizer =
      Tiny(R"({"bos_token": null, "eos_token": {"content": "<s>", "lstrip": false}})");
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.eos_id(), 7);
}

TEST(Tokenizer, SpecialTokensAreSkippedWhenDecoding) {
  const Tokenizer tokenizer = Tiny();
  EXPECT_EQ(tokenizer.Decode(Expected{7, 4, 8}), "ab<tool>");
  EXPECT_EQ(tokenizer.Decode(Expected{7, 4, 8}, false), "<s>ab<tool>");
  EXPECT_TRUE(tokenizer.IsSpecial(7));
  EXPECT_FALSE(tokenizer.IsSpecial(8));
}

TEST(Tokenizer, WithoutFilesIdsAreNumbersAndTextIsRefused) {
  const Tokenizer tokenizer = Tokenizer::IdsOnly(1000);
  EXPECT_EQ(tokenizer.vocab_size(), 1000);
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{3, 999}), " 3 999");
  const auto ids = tokenizer.Encode("hello");
  ASSERT_FALSE(ids);
  EXPECT_EQ(ids.error().code(), Code::kInvalidArgument);
  EXPECT_NE(ids.error().message().find("send token ids, 0 to 999"), std::string::npos);
}

TEST(Tokenizer, UnknownIdsDecodeToNothing) {
  const Tokenizer tokenizer = Tiny();
  EXPECT_EQ(tokenizer.Decode(Expected{4, -1, 9, 1 << 30, 2}), "abc");
  EXPECT_EQ(tokenizer.TokenText(9), "");
  EXPECT_EQ(tokenizer.TokenBytes(-1), "");
}

TEST(Tokenizer, TokenTextAndBytes) {
  const Tokenizer tokenizer = Tiny();
  EXPECT_EQ(tokenizer.TokenText(5), "Ġab");
  EXPECT_EQ(tokenizer.TokenBytes(5), " ab");
  EXPECT_EQ(tokenizer.TokenBytes(6), "\xC3");
  EXPECT_EQ(tokenizer.TokenId("Ġab"), 5);
  EXPECT_EQ(tokenizer.TokenId("<tool>"), 8);
  EXPECT_EQ(tokenizer.TokenId(" ab"), std::nullopt);
}

TEST(Tokenizer, UntrustedTextNeverBecomesASpecialToken) {
  const Tokenizer tokenizer = Tiny();
  const std::string text = "<s>a<s>b<tool>";
  EXPECT_EQ(Ids(tokenizer, text), (Expected{7, 0, 7, 1, 8}));
  const std::vector<TextRange> second{{3, 8}};
  // Characters outside the vocabulary vanish here; <tool> is not special, so it stays a token.
  EXPECT_EQ(Ids(tokenizer, text, {.add_special_tokens = false, .untrusted = second}),
            (Expected{7, 0, 1, 8}));
  const std::vector<TextRange> one_byte{{2, 3}};
  EXPECT_EQ(Ids(tokenizer, text, {.add_special_tokens = false, .untrusted = one_byte}),
            (Expected{0, 7, 1, 8}));
  EXPECT_EQ(Ids(tokenizer, text, {.add_special_tokens = false, .parse_special = false}),
            (Expected{0, 1, 8}));
}

TEST(Tokenizer, UntrustedTextIsFollowedThroughTheNormalizer) {
  std::string json = kTiny;
  const auto change = [&](const std::string& from, const std::string& to) {
    json.replace(json.find(from), from.size(), to);
  };
  change("\"normalized\": false", "\"normalized\": true");  // of <s>
  change("\"normalizer\": null", R"("normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "c"}, {"type": "Replace", "pattern": {"String": "x"}, "content": "ab"},
      {"type": "Replace", "pattern": {"String": "y"}, "content": ""}, {"type": "Lowercase"}]})");
  const auto tokenizer = Tokenizer::Load({.tokenizer_json = json});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  // The token's own content is normalized too: what is looked for is "c<s>".
  const std::string text = "<S>xy<S>";
  EXPECT_EQ(Ids(*tokenizer, text), (Expected{7, 4}));
  const std::vector<TextRange> first{{0, 3}};
  EXPECT_EQ(Ids(*tokenizer, text, {.add_special_tokens = false, .untrusted = first}),
            (Expected{2, 4}));
}

TEST(Tokenizer, InvalidUtf8IsAnError) {
  const Tokenizer tokenizer = Tiny();
  for (const std::string_view text :
       {"\x80", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\xFF"}) {
    const auto ids = tokenizer.Encode(text);
    ASSERT_FALSE(ids) << "accepted " << testing::PrintToString(text);
    EXPECT_EQ(ids.error().code(), Code::kInvalidArgument);
  }
}

TEST(Tokenizer, RefusesUnknownComponentsByName) {
  const auto refused = [](std::string from, const std::string& to, const std::string& name) {
    std::string json = kTiny;
    const size_t at = json.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    json.replace(at, from.size(), to);
    const auto tokenizer = Tokenizer::Load({.tokenizer_json = json});
    ASSERT_FALSE(tokenizer) << to;
    EXPECT_EQ(tokenizer.error().code(), Code::kUnsupported);
    EXPECT_NE(tokenizer.error().message().find(name), std::string::npos)
        << tokenizer.error().message();
  };
  refused("\"BPE\"", "\"Unigram\"", "Unigram");
  refused("\"normalizer\": null", R"("normalizer": {"type": "Precompiled"})", "Precompiled");
  refused("\"ByteLevel\"", "\"BertPreTokenizer\"", "BertPreTokenizer");
  refused("\"TemplateProcessing\"", "\"RobertaProcessing\"", "RobertaProcessing");
  refused(R"("decoder": {"type": "ByteLevel")", R"("decoder": {"type": "CTC")", "CTC");
}

TEST(Tokenizer, PostProcessorMayNotAddUnknownIds) {
  std::string json = kTiny;
  json.replace(json.find("\"ids\": [7]"), 10, "\"ids\": [9]");
  const auto tokenizer = Tokenizer::Load({.tokenizer_json = json});
  ASSERT_FALSE(tokenizer) << "loaded";
  EXPECT_NE(tokenizer.error().message().find("id 9"), std::string::npos);
}

TEST(Tokenizer, MalformedFilesAreErrors) {
  for (const char* json : {"", "{", "[]", "{}", R"({"model": {"type": "BPE"}})",
                           R"({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}})",
                           R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})",
                           R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}})"}) {
    const auto tokenizer = Tokenizer::Load({.tokenizer_json = json});
    ASSERT_FALSE(tokenizer) << json;
    EXPECT_EQ(tokenizer.error().code(), Code::kInvalidArgument) << json;
  }
}

TEST(Detokenizer, HoldsBackPartialCodePoints) {
  std::string json = kTiny;
  const std::string from = "\"Ã\": 6";
  json.replace(json.find(from), from.size(), R"("Ã": 6, "©": 9)");
  auto tokenizer = Tokenizer::Load({.tokenizer_json = json});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  Detokenizer stream(*tokenizer);
  EXPECT_EQ(stream.Push(6), "");
  EXPECT_EQ(stream.Push(9), "é");
  EXPECT_EQ(stream.Push(6), "");
  EXPECT_EQ(stream.Push(0), "\uFFFDa");
  EXPECT_EQ(stream.Push(6), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
  EXPECT_EQ(stream.Finish(), "");
}

}  // namespace
}  // namespace nibble::text
