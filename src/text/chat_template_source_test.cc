#include "text/chat_template_source.h"

#include <gtest/gtest.h>

namespace nibble::text {
namespace {

std::string Selected(const ChatTemplateFiles& files, bool with_tools = false) {
  const auto sources = ChatTemplateSources::Load(files);
  if (!sources) return "error: " + sources.error().message();
  const auto source = sources->Select(with_tools);
  return source ? std::string(*source) : "error: " + source.error().message();
}

constexpr std::string_view kList =
    R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]})";

TEST(ChatTemplateSource, FilesReplaceTheConfig) {
  const std::string config = R"({"chat_template": "config"})";
  EXPECT_EQ(Selected({.tokenizer_config_json = config}), "config");
  EXPECT_EQ(Selected({.chat_template_jinja = "file", .tokenizer_config_json = config}), "file");
  EXPECT_EQ(Selected({.chat_template_jinja = "file",
                      .additional = {{"tool_use", "tools"}},
                      .tokenizer_config_json = config},
                     true),
            "tools");
  EXPECT_EQ(Selected({.chat_template_jinja = "file", .additional = {{"rag", "r"}}}, true), "file");
  // The config is not even read then.
  EXPECT_EQ(Selected({.chat_template_jinja = "file", .tokenizer_config_json = "broken"}), "file");
}

TEST(ChatTemplateSource, ListOfTemplates) {
  const ChatTemplateFiles files = {.tokenizer_config_json = std::string(kList)};
  EXPECT_EQ(Selected(files), "D");
  EXPECT_EQ(Selected(files, true), "T");
  EXPECT_EQ(*ChatTemplateSources::Load(files)->Named("tool_use"), "T");
  EXPECT_EQ(ChatTemplateSources::Load(files)->Named("rag").error().message(),
            "the model has no chat template named 'rag': one of default, tool_use");
  EXPECT_EQ(Selected({.tokenizer_config_json =
                          R"({"chat_template": [{"name": "rag", "template": "R"}]})"}),
            "R");
}

TEST(ChatTemplateSource, OldProcessorsAndNone) {
  EXPECT_EQ(Selected({.tokenizer_config_json = "{}",
                      .chat_template_json = R"({"chat_template": "old"})"}),
            "old");
  EXPECT_TRUE(
      ChatTemplateSources::Load({.tokenizer_config_json = R"({"chat_template": null})"})->empty());
  EXPECT_NE(Selected({}).find("has no chat template"), std::string::npos);
}

TEST(ChatTemplateSource, BrokenFilesAreNamed) {
  EXPECT_NE(Selected({.tokenizer_config_json = "{"}).find("tokenizer_config.json is not JSON"),
            std::string::npos);
  EXPECT_NE(Selected({.tokenizer_config_json = R"({"chat_template": 5})"}).find("string or a list"),
            std::string::npos);
  EXPECT_NE(Selected({.tokenizer_config_json = R"({"chat_template": [{"name": "x"}]})"})
                .find("name and template"),
            std::string::npos);
}

// What PreTrainedTokenizerFast.special_tokens_map of transformers 5 says of the same file.
TEST(ChatTemplateSource, SpecialTokens) {
  const auto tokens = SpecialTokenVariables(
      R"({"bos_token": null, "eos_token": "<e>", "pad_token": {"content": "<p>"}, "unk_token": "",
          "image_token": "<img>", "boi_token": 5, "add_bos_token": true,
          "additional_special_tokens": ["<a>"],
          "extra_special_tokens": {"audio_token": "<aud>", "think": "<think>"}})");
  ASSERT_TRUE(tokens) << tokens.error().message();
  EXPECT_EQ(*tokens, (boost::json::object{{"eos_token", "<e>"},
                                          {"pad_token", "<p>"},
                                          {"unk_token", ""},
                                          {"image_token", "<img>"},
                                          {"audio_token", "<aud>"},
                                          {"think", "<think>"}}));
  EXPECT_EQ(SpecialTokenVariables("[]").error().code(), Code::kCorruption);
  EXPECT_TRUE(SpecialTokenVariables(R"({"extra_special_tokens": ["<x>"]})")->empty());
}

// transformers 5 merges the map over the config, unless the config describes its added tokens.
TEST(ChatTemplateSource, SpecialTokensOfTheMap) {
  constexpr std::string_view kMap =
      R"({"bos_token": {"content": "<b>", "lstrip": false}, "eos_token": "<map>", "pad_token": null,
          "additional_special_tokens": ["<a>"]})";
  EXPECT_EQ(
      *SpecialTokenVariables(R"({"eos_token": "<e>", "pad_token": "<p>", "unk_token": "u"})", kMap),
      (boost::json::object{{"eos_token", "<map>"}, {"unk_token", "u"}, {"bos_token", "<b>"}}));
  EXPECT_EQ(*SpecialTokenVariables("", kMap),
            (boost::json::object{{"bos_token", "<b>"}, {"eos_token", "<map>"}}));
  EXPECT_EQ(*SpecialTokenVariables(R"({"eos_token": "<e>", "added_tokens_decoder": {}})", kMap),
            (boost::json::object{{"eos_token", "<e>"}}));
  EXPECT_NE(SpecialTokenVariables("{}", "[]").error().message().find("special_tokens_map.json"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::text
