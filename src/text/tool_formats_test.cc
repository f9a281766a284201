// Tool calls and reasoning in the formats of the families. Every case is parsed whole, cut at every
// byte, and byte by byte, in both ways of reporting calls.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_parser.h"
#include "text/testing/parsed_answer.h"

namespace nibble::text {
namespace {

using Answer = ParsedAnswer;
using Kind = AnswerEvent::Kind;

// The tools of all cases.
const boost::json::array& Tools() {
  static const boost::json::array tools =
      boost::json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {
          "s": {"type": "string"}, "n": {"type": "integer"}, "l": {"type": "array"},
          "o": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}}])")
          .as_array();
  return tools;
}

AnswerParserOptions Options(std::string tools, std::string reasoning = "none",
                            AnswerStart start = AnswerStart::kContent) {
  return {.names = {.tools = std::move(tools), .reasoning = std::move(reasoning)},
          .start = start,
          .tools = &Tools()};
}

// The answer, which must not depend on the cuts.
Answer ParseWithCuts(const AnswerParserOptions& options, std::string_view text) {
  const Answer answer = Parse(options, text);
  std::vector<size_t> every_byte;
  for (size_t cut = 1; cut < text.size(); ++cut) {
    EXPECT_EQ(Parse(options, text, {cut}), answer) << text << "\ncut at " << cut;
    every_byte.push_back(cut);
  }
  EXPECT_EQ(Parse(options, text, every_byte), answer) << text;
  return answer;
}

// Both ways of reporting calls give this.
void ExpectAnswer(AnswerParserOptions options, std::string_view text, const Answer& expected) {
  for (const bool whole : {false, true}) {
    options.whole_tool_calls = whole;
    EXPECT_EQ(ParseWithCuts(options, text), expected) << (whole ? "whole" : "streamed");
  }
}

// No call; reported whole, nothing is lost and nothing is changed.
void ExpectContent(AnswerParserOptions options, std::string_view text) {
  options.whole_tool_calls = true;
  EXPECT_EQ(ParseWithCuts(options, text), Answer{.content = std::string(text)});
  options.whole_tool_calls = false;
  ParseWithCuts(options, text);
}

TEST(ToolFormats, QwenCoder) {
  const auto options = Options("qwen3_coder");
  ExpectAnswer(options,
               "I look.\n\n<tool_call>\n<function=f>\n<parameter=s>\nline \"1\"\n\n2\n"
               "</parameter>\n<parameter=n>\n5\n</parameter>\n<parameter=l>\n[1, {\"a\": null}]\n"
               "</parameter>\n</function>\n</tool_call>",
               {.content = "I look.",
                .calls = {{"f", R"({"s": "line \"1\"\n\n2", "n": 5, "l": [1, {"a": null}]})"}}});
  // A declared string stays one; what is not declared is JSON where it can be.
  ExpectAnswer(
      options,
      "<tool_call><function=f><parameter=s>5</parameter><parameter=n>five</parameter>"
      "<parameter=o>null</parameter><parameter=x>True</parameter>"
      "<parameter=y>{'a': 'b'}</parameter></function></tool_call>",
      {.calls = {{"f", R"({"s": "5", "n": "five", "o": null, "x": true, "y": {"a": "b"}})"}}});
  // Two calls; missing opening and closing tags; no parameters; text behind.
  ExpectAnswer(
      options,
      "<function=g>\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n<parameter=s>\n"
      "</div> < </parameter\n</parameter>\n</tool_call>\n done",
      {.content = "done", .calls = {{"g", "{}"}, {"f", R"({"s": "</div> < </parameter"})"}}});
  ExpectAnswer(options, "<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n",
               {.calls = {{"f", R"({"n": 1})"}}});
  ExpectAnswer(options,
               "<function=f><parameter=s>\n</parameter><parameter=o>\n\n</parameter></function>",
               {.calls = {{"f", R"({"s": "", "o": ""})"}}});
  ExpectAnswer(Options("qwen3_xml"), "if a <function b", {.content = "if a <function b"});
  for (const std::string_view text :
       {"<tool_call>", "<tool_call>\n<func", "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<function=>x", "<function=a b></function>", "<function=f>text</function>",
        "<function=f><parameter=s>cut off", "<function=f><parameter=s", "x  <tool_call> y"}) {
    ExpectContent(options, text);
  }
  EXPECT_EQ(Parse(options, "<function=f><parameter=s>a</parameter>text"),
            (Answer{.content = "text", .calls = {{"f", R"({"s": "a"})"}}}));
}

TEST(ToolFormats, QwenCoderStreamsStrings) {
  auto parser = AnswerParser::Make(Options("qwen3_coder"));
  ASSERT_TRUE(parser);
  EXPECT_TRUE(parser->Push("<tool_call>\n<function=f>\n<parameter=s").empty());
  EXPECT_EQ(parser->Push(">\nab\n"),
            (std::vector<AnswerEvent>{{Kind::kToolCallStart, "f", 0},
                                      {Kind::kToolCallArguments, "{\"s\": \"ab", 0}}));
  EXPECT_EQ(parser->Push("c</par"),
            (std::vector<AnswerEvent>{{Kind::kToolCallArguments, "\\nc", 0}}));
  EXPECT_EQ(parser->Push("ameter></function>"),
            (std::vector<AnswerEvent>{{Kind::kToolCallArguments, "\"}", 0}}));
}

TEST(ToolFormats, Glm) {
  const auto options = Options("glm45");
  ExpectAnswer(
      options,
      "Wait.\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>New York\n</arg_value>\n"
      "<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g\n"
      "</tool_call>",
      {.content = "Wait.", .calls = {{"f", R"({"s": "New York\n", "n": 3})"}, {"g", "{}"}}});
  ExpectAnswer(Options("glm47"),
               "<tool_call>f<arg_key>l</arg_key><arg_value>[\"a\"]</arg_value></tool_call>",
               {.calls = {{"f", R"({"l": ["a"]})"}}});
  for (const std::string_view text :
       {"<tool_call>{\"name\": \"f\"}</tool_call>", "<tool_call>f g</tool_call>",
        "<tool_call>f<arg_key>s</arg_key>x</tool_call>", "<tool_call>f<arg_key>s</arg_key>",
        "<tool_call>f<arg_key>s</arg_key><arg_value>a", "<tool_call></tool_call>"}) {
    ExpectContent(options, text);
  }
}

TEST(ToolFormats, DeepSeek) {
  const auto options = Options("deepseek_v3");
  ExpectAnswer(
      options,
      "Ok.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
      "{\"s\": \"```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n"
      "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
      {.content = "Ok.", .calls = {{"f", "{\"s\": \"```\"}"}, {"g", "{}"}}});
  // V3.1's shape; a section that is not opened or closed; no arguments at all.
  ExpectAnswer(
      Options("deepseek_v31"),
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"n\": 1}<｜tool▁call▁end｜>"
      "<｜tool▁call▁begin｜>g<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
      {.calls = {{"f", "{\"n\": 1}"}, {"g", "{}"}}});
  ExpectAnswer(options, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"n\": 1}",
               {.calls = {{"f", "{\"n\": 1}"}}});
  for (const std::string_view text :
       {"<｜tool▁calls▁begin｜>text", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>function",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\nno fence", "<｜tool", "a <｜tool▁b",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"n\": x}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"n\""}) {
    ExpectContent(options, text);
  }
  EXPECT_EQ(Parse(options, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"n\": x}<｜tool▁call▁end｜>y"),
            (Answer{.content = "y", .calls = {{"f", "{\"n\": x}"}}}));
}

TEST(ToolFormats, Kimi) {
  const auto options = Options("kimi_k2");
  ExpectAnswer(
      options,
      "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get.x:0"
      "<|tool_call_argument_begin|>{\"a\": [1]}<|tool_call_end|><|tool_call_begin|>"
      "functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
      "<|tool_calls_section_end|>",
      {.content = "Sure.",
       .calls = {{"get.x", "{\"a\": [1]}", "functions.get.x:0"}, {"g", "{}", "functions.g:1"}}});
  ExpectAnswer(options, "<|tool_call_begin|>f<|tool_call_argument_begin|><|tool_call_end|>",
               {.calls = {{"f", "{}", "f"}}});
  for (const std::string_view text :
       {"<|tool_calls_section_begin|>x", "<|tool_call_begin|>functions.f:0",
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>[1]",
        "<|tool_call_begin|>:0<|tool_call_argument_begin|>{}", "<|tool_call_begin|>\n\n"}) {
    ExpectContent(options, text);
  }
  ExpectContent(options, "<|tool_call_begin|>" + std::string(400, 'a'));
}

TEST(ToolFormats, Mistral) {
  const auto options = Options("mistral");
  ExpectAnswer(options,
               "Text [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"n\": 1}}, "
               "{\"name\": \"g\", \"arguments\": {}}]",
               {.content = "Text", .calls = {{"f", "{\"n\": 1}"}, {"g", "{}"}}});
  ExpectAnswer(options, "[TOOL_CALLS]f[ARGS]{\"n\": 1}[TOOL_CALLS]g[CALL_ID]abc123def[ARGS]{}",
               {.calls = {{"f", "{\"n\": 1}"}, {"g", "{}", "abc123def"}}});
  ExpectAnswer(options, "[TOOL_CALLS]f{\"n\": 1}", {.calls = {{"f", "{\"n\": 1}"}}});
  for (const std::string_view text :
       {"[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS]f[ARG", "[TOOL_CALLS] f x", "[TOOL_CALL",
        "[TOOL_CALLS]f[CALL_ID]1", "[TOOL_CALLS][{\"name\": 1}]", "[TOOL_CALLS]f[ARGS]text"}) {
    ExpectContent(options, text);
  }
}

TEST(ToolFormats, Llama) {
  const auto options = Options("llama3_json");
  ExpectAnswer(options, "{\"name\": \"f\", \"parameters\": {\"s\": \"a\"}}",
               {.calls = {{"f", "{\"s\": \"a\"}"}}});
  ExpectAnswer(options,
               " \n<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; "
               "{\"name\": \"g\", \"parameters\": {\"n\": 2}}",
               {.calls = {{"f", "{}"}, {"g", "{\"n\": 2}"}}});
  ExpectAnswer(Options("llama4_json"),
               "<|python_start|>{\"name\": \"f\", \"parameters\": {}}<|python_end|>",
               {.calls = {{"f", "{}"}}});
  // Only the beginning of the answer is a call without a tag.
  ExpectContent(options, "Like {\"name\": \"f\", \"parameters\": {}}");
  for (const std::string_view text : {"{\"a\": 1}", "{\"name\": \"f\", \"parameters\": {", "{x",
                                      "{", "[1]", "<|python_tag|>print(1)"}) {
    ExpectContent(options, text);
  }
}

TEST(ToolFormats, Pythonic) {
  const auto options = Options("pythonic");
  ExpectAnswer(
      options, "[f(s='it\\'s (ok)', n=-3, l=[1, (2.5e-1,), {'k': None}], b=True), g()]",
      {.calls = {
           {"f",
            R"json({"s": "it's (ok)", "n": -3, "l": [1, [2.5e-1], {"k": null}], "b": true})json"},
           {"g", "{}"}}});
  ExpectAnswer(Options("llama4_pythonic"),
               "<|python_start|>[ a.b( x = \"\\u00e9\\n\" , ), ]<|python_end|>\n",
               {.calls = {{"a.b", R"({"x": "é\n"})"}}});
  for (const std::string_view text :
       {"[1, 2]", "[f(1)]", "[f(x=y)]", "[f(x=1", "[f(x=1 2)]", "[f(x=__import__('os'))]", "[",
        "[f(x=01)]", "[f(x='a)]", "[f{x}]", "See [f()]"}) {
    ExpectContent(options, text);
  }
  // A call that was reported stays reported.
  EXPECT_EQ(Parse(options, "[f(), oops"), (Answer{.content = "oops", .calls = {{"f", "{}"}}}));
}

TEST(ToolFormats, NemotronAndPhi) {
  ExpectAnswer(Options("nemotron_json"),
               "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}]</TOOLCALL>",
               {.calls = {{"f", "{\"n\": 1}"}}});
  ExpectAnswer(Options("phi4_mini_json"), "functools[{\"name\": \"f\", \"arguments\": {\"n\": 1}}]",
               {.calls = {{"f", "{\"n\": 1}"}}});
  ExpectAnswer(Options("phi4_mini_json"),
               "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]<|/tool_call|>",
               {.calls = {{"f", "{}"}}});
  ExpectContent(Options("phi4_mini_json"), "import functools\nfunctools.partial(f)");
  ExpectContent(Options("nemotron_json"), "<TOOLCALL>no</TOOLCALL>");
}

// ---- Reasoning ----

TEST(ReasoningFormats, TagsOfTheFamilies) {
  for (const std::string name :
       {"deepseek_r1", "deepseek_v3", "glm45", "kimi_k2", "nemotron_v3", "qwen3"}) {
    ExpectAnswer(Options("none", name, AnswerStart::kDetect), "\n<think>Hm.</think>\n\nYes",
                 {.content = "Yes", .reasoning = "Hm."});
  }
  ExpectAnswer(Options("mistral", "mistral", AnswerStart::kDetect),
               "[THINK]Hm.[/THINK]Yes[TOOL_CALLS]f[ARGS]{}",
               {.content = "Yes", .reasoning = "Hm.", .calls = {{"f", "{}"}}});
  ExpectAnswer(Options("kimi_k2", "kimi_k2", AnswerStart::kReasoning),
               "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
               "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
               {.reasoning = "Hm.", .calls = {{"f", "{}", "functions.f:0"}}});
}

TEST(ReasoningFormats, StartOfTheAnswer) {
  EXPECT_EQ(ChooseStart("mistral", "[INST]x[/INST]", {}, false), AnswerStart::kDetect);
  EXPECT_EQ(ChooseStart("glm45", "<|assistant|>", {}, true), AnswerStart::kDetect);
  EXPECT_EQ(ChooseStart("glm45", "<|assistant|>\n<think></think>", false, true),
            AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("deepseek_v3", "<｜Assistant｜></think>", {}, false),
            AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("deepseek_v3", "<｜Assistant｜><think>", {}, false),
            AnswerStart::kReasoning);
  EXPECT_EQ(ChooseStart("deepseek_v3", "<｜Assistant｜>", {}, false), AnswerStart::kContent);
  EXPECT_EQ(ChooseStart("nemotron_v3", "assistant\n", {}, false), AnswerStart::kReasoning);
  EXPECT_EQ(ChooseStart("openai_gptoss", "<|end|><|start|>assistant", {}, false),
            AnswerStart::kDetect);
  EXPECT_EQ(ChooseStart("openai_gptoss", "<|start|>assistant<|channel|>final<|message|>I", {}, {}),
            AnswerStart::kContent);
  EXPECT_EQ(
      ChooseStart("openai_gptoss", "<|start|>assistant<|channel|>analysis<|message|>", {}, {}),
      AnswerStart::kReasoning);
}

// ---- Harmony ----

AnswerParserOptions Harmony(AnswerStart start = AnswerStart::kDetect) {
  return Options("openai", "openai_gptoss", start);
}

TEST(HarmonyFormat, ChannelsBecomeReasoningContentAndCalls) {
  ExpectAnswer(Harmony(),
               "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant<|channel|>final"
               "<|message|>Hello  ü<|return|>",
               {.content = "Hello  ü", .reasoning = "Hm.\n"});
  ExpectAnswer(Harmony(),
               "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
               "to=functions.get_x <|constrain|>json<|message|>{\"a\": \"<b>\"}<|call|>",
               {.reasoning = "Hm.", .calls = {{"get_x", "{\"a\": \"<b>\"}"}}});
  // The recipient in front of the channel; no stop token in the text; several calls and messages.
  ExpectAnswer(
      Harmony(),
      " to=functions.f<|channel|>commentary json<|message|> {\"n\": 1}\n <|end|>"
      "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant"
      "<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>commentary"
      "<|message|>I call.<|end|><|start|>assistant to=functions.g<|channel|>commentary"
      "<|message|>",
      {.content = "I call.", .reasoning = "a\n\nb", .calls = {{"f", "{\"n\": 1}"}, {"g", "{}"}}});
  ExpectAnswer(Harmony(AnswerStart::kContent), "in the middle<|return|>",
               {.content = "in the middle"});
  ExpectAnswer(Harmony(AnswerStart::kReasoning),
               "Hm.<|end|><|start|>assistant<|channel|>final"
               "<|message|>Yes",
               {.content = "Yes", .reasoning = "Hm."});
}

TEST(HarmonyFormat, WithoutToolsACallIsContent) {
  ExpectAnswer(Options("none", "openai_gptoss", AnswerStart::kDetect),
               "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
               {.content = "{}"});
}

TEST(HarmonyFormat, TextThatIsNoHeader) {
  for (const std::string_view text :
       {"Hello", " to be", "t", "to", "a < b <| c", "<", "<|chan", "Hello <|channe"}) {
    ExpectAnswer(Harmony(), text, {.content = std::string(text)});
  }
  ExpectAnswer(Harmony(), "to=5 is wrong", {.content = "to=5 is wrong"});
  // Forgotten tags: the control tokens go, the text stays.
  ExpectAnswer(Harmony(), "<|channel|>final Hello<|return|>", {.content = "Hello"});
  ExpectAnswer(Harmony(), "<|channel|>final Hello", {.content = "Hello"});
  ExpectAnswer(Harmony(), "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
               {.content = "b", .reasoning = "a"});
  ExpectAnswer(Harmony(), "<|channel|>commentary to=functions.f", {});
  ExpectAnswer(Harmony(), "<|channel|>final " + std::string(2000, 'x'),
               {.content = std::string(2000, 'x')});
}

// ---- Any text ----

const std::vector<ParserNames>& AllNames() {
  static const std::vector<ParserNames> names = {
      {"qwen3_coder", "qwen3"},    {"glm45", "glm45"},         {"deepseek_v3", "deepseek_r1"},
      {"deepseek_v31", "none"},    {"kimi_k2", "kimi_k2"},     {"mistral", "mistral"},
      {"llama3_json", "none"},     {"pythonic", "none"},       {"llama4_pythonic", "none"},
      {"nemotron_json", "none"},   {"phi4_mini_json", "none"}, {"openai", "openai_gptoss"},
      {"hermes", "openai_gptoss"}, {"none", "openai_gptoss"},  {"hermes", "qwen3"}};
  return names;
}

std::string RandomText(const ParserNames& names, std::mt19937& random) {
  static constexpr std::string_view kPieces[] = {"text",
                                                 "\n",
                                                 " ",
                                                 "<",
                                                 "{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 "ü",
                                                 ",",
                                                 ";",
                                                 "f",
                                                 "\"",
                                                 ": ",
                                                 "1",
                                                 "```json",
                                                 "```",
                                                 "{\"n\": 1}",
                                                 "{}",
                                                 "f(x=1)",
                                                 "f(",
                                                 ")",
                                                 "=",
                                                 "'",
                                                 ">",
                                                 "s",
                                                 "<parameter=s>",
                                                 "</parameter>",
                                                 "<parameter=n>",
                                                 "<arg_key>s</arg_key>",
                                                 "<arg_value>",
                                                 "</arg_value>",
                                                 "<function=f>",
                                                 "</function>",
                                                 "<｜tool▁sep｜>",
                                                 "functions.f:0",
                                                 "<|tool_call_argument_begin|>",
                                                 "analysis",
                                                 "final",
                                                 " to=functions.f",
                                                 "commentary",
                                                 "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
                                                 "{\"name\": \"f\", \"arguments\": {\"a\": tru"};
  const std::vector<std::string_view> tags = ParserTags(names);
  std::string text;
  for (size_t pieces = random() % 12; pieces > 0; --pieces) {
    const bool is_tag = !tags.empty() && random() % 2 == 0;
    const std::string_view piece =
        is_tag ? tags[random() % tags.size()] : kPieces[random() % std::size(kPieces)];
    const bool is_cut = random() % 8 == 0;
    text += is_cut ? piece.substr(0, random() % (piece.size() + 1)) : piece;
  }
  return text;
}

TEST(ToolFormats, TheCutMakesNoDifference) {
  std::mt19937 random(5);
  for (int round = 0; round < 30000; ++round) {
    const ParserNames& names = AllNames()[random() % AllNames().size()];
    auto options = Options(names.tools, names.reasoning, static_cast<AnswerStart>(random() % 3));
    options.whole_tool_calls = random() % 2 == 0;
    const std::string text = RandomText(names, random);
    std::vector<size_t> cuts;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      if (random() % 3 == 0) cuts.push_back(cut);
    }
    ASSERT_EQ(Parse(options, text, cuts), Parse(options, text))
        << names.tools << " " << names.reasoning << ": " << text;
  }
}

// Arguments that are reported whole are JSON, but for harmony's, whose calls are not checked.
TEST(ToolFormats, WholeCallsHaveJsonArguments) {
  std::mt19937 random(6);
  int calls = 0;
  for (int round = 0; round < 30000; ++round) {
    const ParserNames& names = AllNames()[random() % AllNames().size()];
    if (names.tools == "openai") continue;
    auto options = Options(names.tools);
    options.whole_tool_calls = true;
    const std::string text = RandomText(names, random);
    for (const ParsedCall& call : Parse(options, text).calls) {
      boost::system::error_code error;
      boost::json::parse(call.arguments, error);
      ASSERT_FALSE(error) << names.tools << ": " << text << "\n" << call.arguments;
      EXPECT_FALSE(call.name.empty());
      ++calls;
    }
  }
  EXPECT_GT(calls, 100);
}

TEST(HarmonyFormat, ControlTokensNeverLeak) {
  std::mt19937 random(7);
  const ParserNames names{"openai", "openai_gptoss"};
  for (int round = 0; round < 10000; ++round) {
    // Whole tags only: half a tag is text.
    std::string text;
    const std::vector<std::string_view> tags = ParserTags(names);
    for (size_t pieces = random() % 10; pieces > 0; --pieces) {
      static constexpr std::string_view kWords[] = {"analysis", "final", "x", " ",
                                                    "to=functions.f"};
      text += random() % 2 == 0 ? tags[random() % tags.size()] : kWords[random() % 5];
    }
    const Answer answer = Parse(Options(names.tools, names.reasoning, AnswerStart::kDetect), text);
    std::string all = answer.content + "\n" + answer.reasoning;
    for (const ParsedCall& call : answer.calls) all += "\n" + call.name + "\n" + call.arguments;
    for (const std::string_view tag : tags) {
      ASSERT_EQ(all.find(tag), all.npos) << text << "\nbecame " << all;
    }
  }
}

// ---- Choosing ----

TEST(ToolFormats, ChosenFromTheTemplate) {
  using N = ParserNames;
  EXPECT_EQ(ChooseParsers("<|channel|>analysis"), (N{"openai", "openai_gptoss"}));
  EXPECT_EQ(ChooseParsers("<｜tool▁calls▁begin｜> ```json"), (N{"deepseek_v3", "none"}));
  EXPECT_EQ(ChooseParsers("<｜tool▁calls▁begin｜> ```json </think>"),
            (N{"deepseek_v3", "deepseek_r1"}));
  EXPECT_EQ(ChooseParsers("<｜tool▁calls▁begin｜> {% if thinking %}<think>"),
            (N{"deepseek_v31", "deepseek_v3"}));
  EXPECT_EQ(ChooseParsers("<|tool_calls_section_begin|>"), (N{"kimi_k2", "none"}));
  EXPECT_EQ(ChooseParsers("[TOOL_CALLS] [THINK]"), (N{"mistral", "mistral"}));
  EXPECT_EQ(ChooseParsers("<TOOLCALL> <think>"), (N{"nemotron_json", "nemotron_v3"}));
  EXPECT_EQ(ChooseParsers("<tool_call>\n<function=x>\n<parameter=y> <think>"),
            (N{"qwen3_coder", "qwen3"}));
  EXPECT_EQ(ChooseParsers("<tool_call> <arg_key> <think>"), (N{"glm45", "glm45"}));
  EXPECT_EQ(ChooseParsers("<|tool|>"), (N{"phi4_mini_json", "none"}));
  EXPECT_EQ(ChooseParsers("{\"name\": function name, \"parameters\": dictionary of"),
            (N{"llama3_json", "none"}));
  EXPECT_EQ(ChooseParsers("<|header_start|> \"parameters\": dictionary"),
            (N{"llama4_json", "none"}));
  EXPECT_EQ(ChooseParsers("[func_name1(params)"), (N{"pythonic", "none"}));
  EXPECT_EQ(ChooseParsers("<start_of_turn>model"), N{});
}

TEST(ToolFormats, TagsOfTheParsers) {
  const auto tags = ParserTags({"kimi_k2", "kimi_k2"});
  EXPECT_NE(std::find(tags.begin(), tags.end(), "<|tool_call_end|>"), tags.end());
  EXPECT_NE(std::find(tags.begin(), tags.end(), "</think>"), tags.end());
  EXPECT_TRUE(ParserTags({"none", "none"}).empty());
}

}  // namespace
}  // namespace nibble::text
