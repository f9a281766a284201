#include "text/answer_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/answer_splitter.h"
#include "text/answer_writer.h"
#include "text/harmony_splitter.h"
#include "text/reasoning_splitter.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {
namespace {

constexpr std::string_view kHarmonyReasoning = "openai_gptoss";
constexpr std::string_view kHarmonyTools = "openai";

struct ReasoningFormat {
  std::string_view name;
  std::string_view open;
  std::string_view close;
  bool tools_end_it;  // the tag of a tool call ends the reasoning too
};

constexpr ReasoningFormat kReasoningFormats[] = {
    {"deepseek_r1", "<think>", "</think>", false}, {"deepseek_v3", "<think>", "</think>", false},
    {"glm45", "<think>", "</think>", true},        {"kimi_k2", "<think>", "</think>", true},
    {"mistral", "[THINK]", "[/THINK]", false},     {"nemotron_v3", "<think>", "</think>", false},
    {"qwen3", "<think>", "</think>", true},
};

const ReasoningFormat* FindReasoning(std::string_view name) {
  const auto* found = std::ranges::find(kReasoningFormats, name, &ReasoningFormat::name);
  return found == std::end(kReasoningFormats) ? nullptr : found;
}

std::string ReasoningParserNames() {
  std::string names;
  for (const ReasoningFormat& format : kReasoningFormats) {
    names += format.name;
    names += ", ";
  }
  return names + std::string(kHarmonyReasoning) + ", none";
}

std::unique_ptr<AnswerSplitter> MakeSplitter(const AnswerParserOptions& options,
                                             std::string_view tool_tag) {
  const bool is_harmony = options.names.reasoning == kHarmonyReasoning;
  const bool has_harmony_tools = options.names.tools == kHarmonyTools;
  if (is_harmony || has_harmony_tools) {
    const AnswerStart start = is_harmony ? options.start : AnswerStart::kDetect;
    return std::make_unique<HarmonySplitter>(start, has_harmony_tools);
  }
  const ReasoningFormat* format = FindReasoning(options.names.reasoning);
  if (format == nullptr) {
    return std::make_unique<ReasoningSplitter>(AnswerStart::kContent, ReasoningSplitter::Tags{});
  }
  return std::make_unique<ReasoningSplitter>(
      options.start, ReasoningSplitter::Tags{.open = format->open,
                                             .close = format->close,
                                             .tool = format->tools_end_it ? tool_tag : ""});
}

}  // namespace

struct AnswerParser::Impl {
  std::unique_ptr<ToolParser> tools;
  std::unique_ptr<AnswerSplitter> splitter;
  AnswerWriter out;
};

AnswerParser::AnswerParser(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AnswerParser::AnswerParser(AnswerParser&&) noexcept = default;
AnswerParser& AnswerParser::operator=(AnswerParser&&) noexcept = default;
AnswerParser::~AnswerParser() = default;

Result<AnswerParser> AnswerParser::Make(const AnswerParserOptions& options) {
  std::unique_ptr<ToolParser> tools =
      MakeToolParser(options.names.tools, options.whole_tool_calls, options.tools);
  if (tools == nullptr) {
    return Fail(Code::kInvalidArgument, "tool-call parser '{}' does not exist: one of {}",
                options.names.tools, ToolParserNames());
  }
  const std::string& reasoning = options.names.reasoning;
  if (reasoning != "none" && reasoning != kHarmonyReasoning &&
      FindReasoning(reasoning) == nullptr) {
    return Fail(Code::kInvalidArgument, "reasoning parser '{}' does not exist: one of {}",
                reasoning, ReasoningParserNames());
  }
  std::unique_ptr<AnswerSplitter> splitter = MakeSplitter(options, tools->opening_tag());
  return AnswerParser(
      std::make_unique<Impl>(Impl{std::move(tools), std::move(splitter), AnswerWriter()}));
}

std::vector<AnswerEvent> AnswerParser::Push(std::string_view text) {
  impl_->splitter->Push(text, *impl_->tools, impl_->out);
  return impl_->out.Take();
}

std::vector<AnswerEvent> AnswerParser::Finish() {
  impl_->splitter->Finish(*impl_->tools, impl_->out);
  return impl_->out.Take();
}

ParserNames ChooseParsers(std::string_view source) {
  const auto mentions = [&](std::string_view text) { return source.find(text) != source.npos; };
  const bool has_think = mentions("<think>") || mentions("</think>");
  const auto with_think = [&](std::string_view tools, std::string_view reasoning) {
    return ParserNames{std::string(tools), has_think ? std::string(reasoning) : "none"};
  };
  // The tags of some formats occur in others: the order counts.
  if (mentions("<|channel|>")) return {"openai", "openai_gptoss"};
  if (mentions("<｜tool▁calls▁begin｜>")) {
    const bool has_fence = mentions("```json");
    return with_think(has_fence ? "deepseek_v3" : "deepseek_v31",
                      mentions("thinking") ? "deepseek_v3" : "deepseek_r1");
  }
  if (mentions("<|tool_calls_section_begin|>")) return with_think("kimi_k2", "kimi_k2");
  if (mentions("[TOOL_CALLS]")) return {"mistral", mentions("[THINK]") ? "mistral" : "none"};
  if (mentions("<TOOLCALL>")) return with_think("nemotron_json", "nemotron_v3");
  if (mentions("<function=") && mentions("<parameter=")) {
    return with_think("qwen3_coder", "qwen3");
  }
  if (mentions("<arg_key>")) return with_think("glm45", "glm45");
  if (mentions("<tool_call>")) return with_think("hermes", "qwen3");
  if (mentions("<|tool_call|>") || mentions("<|tool|>")) {
    return with_think("phi4_mini_json", "deepseek_r1");
  }
  const bool is_llama4 = mentions("<|python_start|>") || mentions("<|header_start|>");
  if (mentions("[func_name1(")) return {is_llama4 ? "llama4_pythonic" : "pythonic", "none"};
  if (mentions("\"parameters\": dictionary"))
    return {is_llama4 ? "llama4_json" : "llama3_json", "none"};
  if (mentions("<｜Assistant｜>")) return with_think("none", "deepseek_r1");
  return with_think("none", "qwen3");
}

std::vector<std::string_view> ParserTags(const ParserNames& names) {
  std::vector<std::string_view> tags = ToolParserTags(names.tools);
  if (names.tools == kHarmonyTools || names.reasoning == kHarmonyReasoning) {
    tags.insert(tags.end(), HarmonySplitter::tags().begin(), HarmonySplitter::tags().end());
  }
  if (const ReasoningFormat* format = FindReasoning(names.reasoning)) {
    tags.insert(tags.end(), {format->open, format->close});
  }
  return tags;
}

std::vector<int32_t> FormatStopIds(const Tokenizer& tokenizer) {
  const auto find_special = [&](std::string_view text) -> std::optional<int32_t> {
    const std::optional<int32_t> id = tokenizer.TokenId(text);
    return id && tokenizer.IsSpecial(*id) ? id : std::nullopt;
  };
  const auto end = find_special("<|return|>");
  const auto call = find_special("<|call|>");
  if (!end || !call || !find_special("<|channel|>")) return {};
  return {*end, *call};
}

namespace {

// A prompt may end inside a message that the answer goes on with.
AnswerStart HarmonyStart(std::string_view prompt) {
  constexpr std::string_view kMessage = "<|message|>";
  const size_t message = prompt.rfind(kMessage);
  const size_t start = prompt.rfind("<|start|>");
  const bool is_open = message != prompt.npos && start != prompt.npos && start < message &&
                       prompt.find("<|end|>", message) == prompt.npos &&
                       prompt.find("<|call|>", message) == prompt.npos;
  if (!is_open) return AnswerStart::kDetect;
  const std::string_view header = prompt.substr(start, message - start);
  return header.find("analysis") != header.npos ? AnswerStart::kReasoning : AnswerStart::kContent;
}

}  // namespace

AnswerStart ChooseStart(std::string_view reasoning_parser, std::string_view prompt,
                        std::optional<bool> enable_thinking, bool template_has_switch) {
  if (reasoning_parser == kHarmonyReasoning) return HarmonyStart(prompt);
  const ReasoningFormat* format = FindReasoning(reasoning_parser);
  if (format == nullptr) return AnswerStart::kContent;
  const size_t end = prompt.find_last_not_of(" \t\r\n");
  const std::string_view trimmed =
      end == std::string_view::npos ? std::string_view() : prompt.substr(0, end + 1);
  if (trimmed.ends_with(format->open)) return AnswerStart::kReasoning;
  if (trimmed.ends_with(format->close)) return AnswerStart::kContent;
  if (enable_thinking.has_value() && !*enable_thinking) return AnswerStart::kContent;
  if (reasoning_parser == "deepseek_r1" || reasoning_parser == "nemotron_v3") {
    return AnswerStart::kReasoning;
  }
  if (reasoning_parser == "deepseek_v3") {
    return enable_thinking.value_or(false) ? AnswerStart::kReasoning : AnswerStart::kContent;
  }
  if (reasoning_parser == "qwen3" && template_has_switch) return AnswerStart::kReasoning;
  return AnswerStart::kDetect;
}

}  // namespace nibble::text
