#include "text/answer_parser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "text/testing/parsed_answer.h"

namespace nibble::text {
namespace {

using Kind = AnswerEvent::Kind;

using Answer = ParsedAnswer;

AnswerParserOptions Hermes(bool whole = false) {
  return {.names = {.tools = "hermes", .reasoning = "none"}, .whole_tool_calls = whole};
}

AnswerParserOptions Reasoning(std::string name, AnswerStart start, std::string tools = "none") {
  return {.names = {.tools = std::move(tools), .reasoning = std::move(name)}, .start = start};
}

// ---- Hermes ----

struct HermesCase {
  std::string_view text;
  Answer answer;
};

const HermesCase kValidCalls[] = {
    {"plain text\n", {.content = "plain text\n"}},
    {"<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": null}]}}\n</tool_call>",
     {.calls = {{"f", "{\"a\": [1, {\"b\": null}]}"}}}},
    {"Let me look.\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n",
     {.content = "Let me look.", .calls = {{"f", "{}"}}}},
    {"<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":1}}</tool_call>\n"
     "<tool_call>{\"name\":\"g\",\"arguments\":{\"y\":2}}</tool_call>\nand text",
     {.content = "and text", .calls = {{"f", "{\"x\":1}"}, {"g", "{\"y\":2}"}}}},
    // The last call is not closed.
    {"<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}", {.calls = {{"f", "{\"x\": 1}"}}}},
    {"<tool_call>{\"name\":\"f\",\"arguments\":{}}<tool_call>{\"name\":\"g\",\"arguments\":{}}",
     {.calls = {{"f", "{}"}, {"g", "{}"}}}},
    // Tags inside strings are text.
    {"<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"</tool_call><tool_call>\\\"\"}}</"
     "tool_call>",
     {.calls = {{"f", "{\"s\":\"</tool_call><tool_call>\\\"\"}"}}}},
    // Other orders and shapes that models write.
    {"<tool_call>{\"arguments\": {\"x\": 1}, \"id\": 7, \"name\": \"f\"}</tool_call>",
     {.calls = {{"f", "{\"x\": 1}"}}}},
    {"<tool_call>{\"name\": \"f\"}</tool_call>", {.calls = {{"f", "{}"}}}},
    {"<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
     {.calls = {{"f", "{\"a\": 1}"}}}},
    {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}}\n</tool_call>",
     {.calls = {{"f", "{\"a\": 1}"}}}},
    {"<tool_call>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
     {.content = "<tool_call>\n", .calls = {{"f", "{}"}}}},
    {"<tool_call>{\"name\": \"größe\\u0021\", \"arguments\": {\"s\": \"日本\"}}</tool_call>",
     {.calls = {{"größe!", "{\"s\": \"日本\"}"}}}},
    // What only looks like a tag.
    {"a <tool_cal b <tool_call", {.content = "a <tool_cal b <tool_call"}},
    {"</tool_call> x", {.content = "</tool_call> x"}},
    {"1 < 2 <<tool_call>{\"name\":\"f\",\"arguments\":{}}",
     {.content = "1 < 2 <", .calls = {{"f", "{}"}}}},
};

TEST(AnswerParser, HermesCalls) {
  for (const auto& [text, answer] : kValidCalls) {
    EXPECT_EQ(Parse(Hermes(), text), answer) << text;
    EXPECT_EQ(Parse(Hermes(true), text), answer) << text;
  }
}

constexpr std::string_view kInvalidCalls[] = {
    "<tool_call>not json</tool_call>",
    "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
    "<tool_call>{\"arguments\": {}}</tool_call>",
    "<tool_call>{}</tool_call>",
    "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>",
    "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"\n\"}}</tool_call>",
    "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\"",
    "text  <tool_call>",
};

TEST(AnswerParser, InvalidCallsAreContentWhenReportedWhole) {
  for (const std::string_view text : kInvalidCalls) {
    EXPECT_EQ(Parse(Hermes(true), text), Answer{.content = std::string(text)});
  }
}

TEST(AnswerParser, StreamedCallKeepsWhatWasSent) {
  EXPECT_EQ(
      Parse(Hermes(), "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>z"),
      (Answer{.content = "z", .calls = {{"f", "{\"a\": tru}"}}}));
  EXPECT_EQ(Parse(Hermes(), "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1"),
            (Answer{.calls = {{"f", "{\"a\": 1"}}}));
  EXPECT_EQ(Parse(Hermes(), "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1},}</tool_call>"),
            (Answer{.calls = {{"f", "{\"a\": 1}"}}}));
  EXPECT_EQ(Parse(Hermes(), "<tool_call>{\"name\" \"f\"}</tool_call>"),
            (Answer{.content = "<tool_call>{\"name\" \"f\"}</tool_call>"}));
}

TEST(AnswerParser, ArgumentsArriveAsTheyAreWritten) {
  auto parser = AnswerParser::Make(Hermes());
  ASSERT_TRUE(parser);
  EXPECT_TRUE(parser->Push("<tool_call>\n{\"name\": \"f\", \"arg").empty());
  EXPECT_EQ(parser->Push("uments\": {\"ci"),
            (std::vector<AnswerEvent>{{Kind::kToolCallStart, "f", 0},
                                      {Kind::kToolCallArguments, "{\"ci", 0}}));
  EXPECT_EQ(parser->Push("ty\": 1}"),
            (std::vector<AnswerEvent>{{Kind::kToolCallArguments, "ty\": 1}", 0}}));
  EXPECT_TRUE(parser->Push("}\n</tool_call>\n").empty());
  EXPECT_TRUE(parser->Finish().empty());
}

TEST(AnswerParser, HoldsBackNoMoreThanATag) {
  auto parser = AnswerParser::Make(Hermes());
  ASSERT_TRUE(parser);
  EXPECT_EQ(parser->Push("a <tool"), (std::vector<AnswerEvent>{{Kind::kContent, "a", 0}}));
  EXPECT_EQ(parser->Push("s>"), (std::vector<AnswerEvent>{{Kind::kContent, " <tools>", 0}}));
}

// ---- Reasoning ----

TEST(AnswerParser, ReasoningThenContent) {
  const Answer expected{.content = "Hello", .reasoning = "Hm.\nYes."};
  for (const std::string name : {"qwen3", "deepseek_r1"}) {
    const auto reasoning = Reasoning(name, AnswerStart::kReasoning);
    EXPECT_EQ(Parse(reasoning, "<think>\nHm.\nYes.\n</think>\n\nHello"), expected);
    EXPECT_EQ(Parse(reasoning, "\nHm.\nYes.\n</think>\n\nHello"), expected);
    EXPECT_EQ(Parse(reasoning, "Hm.\nYes.</think></think>\nHello"), expected);
    EXPECT_EQ(Parse(Reasoning(name, AnswerStart::kDetect), "<think>Hm.\nYes.</think>Hello"),
              expected);
  }
}

TEST(AnswerParser, WithoutAnEndTagTheStartDecides) {
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kReasoning), "Hm </thin"),
            Answer{.reasoning = "Hm </thin"});
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kContent), "Hm"), Answer{.content = "Hm"});
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kDetect), "  Hm"), Answer{.content = "  Hm"});
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kDetect), "<thi"), Answer{.content = "<thi"});
  EXPECT_EQ(Parse(Reasoning("none", AnswerStart::kReasoning), "<think>a</think>b"),
            Answer{.content = "<think>a</think>b"});
}

TEST(AnswerParser, AToolCallEndsQwensReasoning) {
  const std::string_view text =
      "<think>\nI call.\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kReasoning, "hermes"), text),
            (Answer{.reasoning = "I call.", .calls = {{"f", "{}"}}}));
  EXPECT_EQ(Parse(Reasoning("deepseek_r1", AnswerStart::kReasoning, "hermes"), text).calls.size(),
            0u);
}

TEST(AnswerParser, ReasoningThenToolCalls) {
  EXPECT_EQ(Parse(Reasoning("qwen3", AnswerStart::kReasoning, "hermes"),
                  "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": "
                  "{\"a\": 1}}\n</tool_call>"),
            (Answer{.reasoning = "Hm.", .calls = {{"f", "{\"a\": 1}"}}}));
}

// ---- Any cut ----

std::string RandomAnswer(std::mt19937& random) {
  static constexpr std::string_view kPieces[] = {
      "<think>",
      "</think>",
      "<tool_call>",
      "</tool_call>",
      "\n",
      " ",
      "text",
      "<",
      "</",
      "<tool",
      "ü",
      "{",
      "}",
      "\"name\"",
      ": ",
      "\"f\"",
      "[1, 2.5]",
      ", ",
      "\"arguments\"",
      "{\"a\": ",
      "\"\\u00e9\"",
      "true",
      "-0.5e3",
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}\n</tool_call>",
      "{\"name\": \"g\", \"arguments\": {"};
  std::string text;
  const size_t pieces = random() % 12;
  for (size_t i = 0; i < pieces; ++i) text += kPieces[random() % std::size(kPieces)];
  return text;
}

TEST(AnswerParser, TheCutMakesNoDifference) {
  std::mt19937 random(7);
  const std::vector<ParserNames> names = {
      {"hermes", "none"}, {"hermes", "qwen3"}, {"none", "deepseek_r1"}, {"hermes", "deepseek_r1"}};
  for (int round = 0; round < 20000; ++round) {
    const std::string text = RandomAnswer(random);
    const AnswerParserOptions options{.names = names[random() % names.size()],
                                      .start = static_cast<AnswerStart>(random() % 3),
                                      .whole_tool_calls = random() % 2 == 0};
    std::vector<size_t> cuts;
    const bool every_byte = random() % 4 == 0;
    for (size_t at = 1; at < text.size(); ++at) {
      if (every_byte || random() % 3 == 0) cuts.push_back(at);
    }
    ASSERT_EQ(Parse(options, text, cuts), Parse(options, text)) << text;
  }
}

// A stream reports broken calls too; the valid ones among them are those reported whole.
TEST(AnswerParser, ValidCallsAreTheSameInBothModes) {
  std::mt19937 random(11);
  for (int round = 0; round < 5000; ++round) {
    const std::string text = RandomAnswer(random);
    const Answer whole = Parse(Hermes(true), text);
    const Answer streamed = Parse(Hermes(), text);
    auto at = streamed.calls.begin();
    for (const ParsedCall& call : whole.calls) {
      at = std::find(at, streamed.calls.end(), call);
      ASSERT_NE(at, streamed.calls.end()) << text;
      ++at;
    }
  }
}

// ---- Names ----

TEST(AnswerParser, UnknownNamesListWhatExists) {
  const auto tools = AnswerParser::Make({.names = {.tools = "hermess"}});
  ASSERT_FALSE(tools);
  EXPECT_EQ(tools.error().code(), Code::kInvalidArgument);
  EXPECT_NE(tools.error().message().find("hermes, "), std::string::npos);
  const auto reasoning = AnswerParser::Make({.names = {.reasoning = "qwen"}});
  ASSERT_FALSE(reasoning);
  EXPECT_NE(reasoning.error().message().find("deepseek_r1, "), std::string::npos);
}

TEST(AnswerParser, ChosenFromTheTemplate) {
  EXPECT_EQ(ChooseParsers("... <tool_call> ... <think> ..."), (ParserNames{"hermes", "qwen3"}));
  EXPECT_EQ(ChooseParsers("<|im_start|>"), ParserNames());
}

TEST(AnswerParser, StartOfTheAnswer) {
  EXPECT_EQ(ChooseStart("none", "<think>\n", {}, true), AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("qwen3", "assistant\n<think>\n", false, true), AnswerStart::kReasoning);
  EXPECT_EQ(ChooseStart("qwen3", "<think>\n\n</think>\n\n", {}, true), AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("qwen3", "assistant\n", false, true), AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("qwen3", "assistant\n", {}, true), AnswerStart::kReasoning);
  EXPECT_EQ(ChooseStart("qwen3", "assistant\n", {}, false), AnswerStart::kDetect);
  EXPECT_EQ(ChooseStart("deepseek_r1", "assistant\n", {}, false), AnswerStart::kReasoning);
}

}  // namespace
}  // namespace nibble::text
