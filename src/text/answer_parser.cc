#include "text/answer_parser.h"

#include <utility>

#include "text/answer_writer.h"
#include "text/reasoning_splitter.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {
namespace {

constexpr std::string_view kToolParsers = "hermes, none";
constexpr std::string_view kReasoningParsers = "deepseek_r1, qwen3, none";

std::unique_ptr<ToolParser> MakeToolParser(std::string_view name, bool whole_tool_calls) {
  if (name == "hermes") return MakeHermesParser(whole_tool_calls);
  if (name == "none") return MakeNoToolParser();
  return nullptr;
}

}  // namespace

struct AnswerParser::Impl {
  std::unique_ptr<ToolParser> tools;
  ReasoningSplitter reasoning;
  AnswerWriter out;
};

AnswerParser::AnswerParser(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AnswerParser::AnswerParser(AnswerParser&&) noexcept = default;
AnswerParser& AnswerParser::operator=(AnswerParser&&) noexcept = default;
AnswerParser::~AnswerParser() = default;

Result<AnswerParser> AnswerParser::Make(const AnswerParserOptions& options) {
  std::unique_ptr<ToolParser> tools = MakeToolParser(options.names.tools, options.whole_tool_calls);
  if (tools == nullptr) {
    return Fail(Code::kInvalidArgument, "tool-call parser '{}' does not exist: one of {}",
                options.names.tools, kToolParsers);
  }
  const std::string& reasoning = options.names.reasoning;
  if (reasoning != "qwen3" && reasoning != "deepseek_r1" && reasoning != "none") {
    return Fail(Code::kInvalidArgument, "reasoning parser '{}' does not exist: one of {}",
                reasoning, kReasoningParsers);
  }
  const AnswerStart start = reasoning == "none" ? AnswerStart::kContent : options.start;
  const std::string_view tool_tag = reasoning == "qwen3" ? tools->opening_tag() : "";
  return AnswerParser(std::make_unique<Impl>(
      Impl{std::move(tools), ReasoningSplitter(start, tool_tag), AnswerWriter()}));
}

std::vector<AnswerEvent> AnswerParser::Push(std::string_view text) {
  impl_->reasoning.Push(text, *impl_->tools, impl_->out);
  return impl_->out.Take();
}

std::vector<AnswerEvent> AnswerParser::Finish() {
  impl_->reasoning.Finish(*impl_->tools, impl_->out);
  return impl_->out.Take();
}

ParserNames ChooseParsers(std::string_view template_source) {
  const auto mentions = [&](std::string_view text) {
    return template_source.find(text) != std::string_view::npos;
  };
  return {.tools = mentions("<tool_call>") ? "hermes" : "none",
          .reasoning = mentions("<think>") ? "qwen3" : "none"};
}

AnswerStart ChooseStart(std::string_view reasoning_parser, std::string_view prompt,
                        std::optional<bool> enable_thinking, bool template_has_switch) {
  if (reasoning_parser == "none") return AnswerStart::kContent;
  const size_t end = prompt.find_last_not_of(" \t\r\n");
  const std::string_view trimmed =
      end == std::string_view::npos ? std::string_view() : prompt.substr(0, end + 1);
  if (trimmed.ends_with("<think>")) return AnswerStart::kReasoning;
  if (trimmed.ends_with("</think>")) return AnswerStart::kContent;
  if (enable_thinking.has_value() && !*enable_thinking) return AnswerStart::kContent;
  if (reasoning_parser == "deepseek_r1" || template_has_switch) return AnswerStart::kReasoning;
  return AnswerStart::kDetect;
}

}  // namespace nibble::text
