#include "text/tool_parsers/tool_parser.h"

#include <boost/json.hpp>

#include <algorithm>
#include <utility>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/tagged_parser.h"
#include "text/tool_parsers/tool_schemas.h"

namespace nibble::text {
namespace {

// "none"; and "openai", whose calls are messages of their own (harmony_splitter.h).
class NoToolParser : public ToolParser {
 public:
  std::string_view opening_tag() const override { return ""; }
  void Push(std::string_view text, AnswerWriter& out) override { out.Content(text); }
  void Finish(AnswerWriter&) override {}
};

CallTags HermesTags() {
  return {.open = {"<tool_call>"}, .close = {"</tool_call>"}, .stray = "}]"};
}
CallTags QwenCoderTags() {
  return {.open = {"<tool_call>", "<function="}, .close = {"</tool_call>", "</function>"}};
}
CallTags GlmTags() { return {.open = {"<tool_call>"}, .close = {"</tool_call>"}}; }
CallTags KimiTags() {
  return {.open = {"<|tool_calls_section_begin|>", "<|tool_call_begin|>"},
          .close = {"<|tool_call_end|>", "<|tool_calls_section_end|>"}};
}
CallTags DeepSeekTags() {
  return {.open = {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"},
          .close = {"<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"}};
}
CallTags MistralTags() { return {.open = {"[TOOL_CALLS]"}, .close = {}}; }
CallTags LlamaTags() {
  return {.open = {"<|python_tag|>", "<|python_start|>"},
          .close = {"<|python_end|>", "<|eom_id|>"},
          .bare = "{"};
}
CallTags PythonicTags() {
  return {.open = {"<|python_start|>"}, .close = {"<|python_end|>"}, .bare = "["};
}
CallTags NemotronTags() { return {.open = {"<TOOLCALL>"}, .close = {"</TOOLCALL>"}}; }
CallTags PhiTags() { return {.open = {"functools", "<|tool_call|>"}, .close = {"<|/tool_call|>"}}; }

using MakeBody = std::unique_ptr<CallBody> (*)(ToolSchemas);

struct Format {
  std::string_view name;
  CallTags (*tags)();
  MakeBody body;
};

constexpr MakeBody kJson = [](ToolSchemas) { return MakeJsonCallsBody(); };
constexpr MakeBody kJsonWithSemicolons = [](ToolSchemas) { return MakeJsonCallsBody(";"); };
constexpr MakeBody kDeepSeek = [](ToolSchemas) { return MakeDeepSeekBody(); };
constexpr MakeBody kKimi = [](ToolSchemas) { return MakeKimiBody(); };
constexpr MakeBody kMistral = [](ToolSchemas) { return MakeMistralBody(); };
constexpr MakeBody kPythonic = [](ToolSchemas) { return MakePythonicBody(); };

constexpr Format kFormats[] = {
    {"deepseek_v3", DeepSeekTags, kDeepSeek},
    {"deepseek_v31", DeepSeekTags, kDeepSeek},
    {"glm45", GlmTags, MakeGlmBody},
    {"glm47", GlmTags, MakeGlmBody},
    {"hermes", HermesTags, kJson},
    {"kimi_k2", KimiTags, kKimi},
    {"llama3_json", LlamaTags, kJsonWithSemicolons},
    {"llama4_json", LlamaTags, kJsonWithSemicolons},
    {"llama4_pythonic", PythonicTags, kPythonic},
    {"mistral", MistralTags, kMistral},
    {"nemotron_json", NemotronTags, kJson},
    {"phi4_mini_json", PhiTags, kJson},
    {"pythonic", PythonicTags, kPythonic},
    {"qwen3_coder", QwenCoderTags, MakeQwenCoderBody},
    {"qwen3_xml", QwenCoderTags, MakeQwenCoderBody},
};

const Format* FindFormat(std::string_view name) {
  const auto* found = std::ranges::find(kFormats, name, &Format::name);
  return found == std::end(kFormats) ? nullptr : found;
}

}  // namespace

std::unique_ptr<ToolParser> MakeToolParser(std::string_view name, bool whole_tool_calls,
                                           const boost::json::array* tools) {
  if (name == "none" || name == "openai") return std::make_unique<NoToolParser>();
  const Format* format = FindFormat(name);
  if (format == nullptr) return nullptr;
  ToolSchemas schemas = tools == nullptr ? ToolSchemas() : ToolSchemas(*tools);
  return std::make_unique<TaggedParser>(format->tags(), format->body(std::move(schemas)),
                                        whole_tool_calls);
}

std::string ToolParserNames() {
  std::string names;
  for (const Format& format : kFormats) {
    names += format.name;
    names += ", ";
  }
  return names + "openai, none";
}

std::vector<std::string_view> ToolParserTags(std::string_view name) {
  const Format* format = FindFormat(name);
  if (format == nullptr) return {};
  CallTags tags = format->tags();
  tags.open.insert(tags.open.end(), tags.close.begin(), tags.close.end());
  if (name == "mistral") tags.open.insert(tags.open.end(), {"[ARGS]", "[CALL_ID]"});
  return tags.open;
}

}  // namespace nibble::text
