// Any answer, cut anywhere: never a crash, and the same joined events as uncut.

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/answer_parser.h"

namespace {

using nibble::text::AnswerEvent;
using nibble::text::AnswerParser;
using nibble::text::AnswerParserOptions;
using nibble::text::AnswerStart;

// The events, with consecutive ones of a kind joined.
std::string Joined(const AnswerParserOptions& options, std::string_view text, size_t piece) {
  auto parser = AnswerParser::Make(options);
  NIBBLE_CHECK(parser.has_value());
  std::string out;
  std::pair<AnswerEvent::Kind, int> last = {AnswerEvent::Kind::kContent, -1};
  const auto add = [&](const std::vector<AnswerEvent>& events) {
    for (const AnswerEvent& event : events) {
      const std::pair now = {event.kind, event.index};
      if (now != last) out += "\n" + std::to_string(static_cast<int>(event.kind)) + ":";
      last = now;
      out += event.text;
    }
  };
  for (size_t at = 0; at < text.size(); at += piece) add(parser->Push(text.substr(at, piece)));
  add(parser->Finish());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  constexpr std::string_view kTools[] = {
      "none",    "hermes",      "qwen3_coder",   "glm45",    "deepseek_v3",    "kimi_k2",
      "mistral", "llama3_json", "nemotron_json", "pythonic", "phi4_mini_json", "openai"};
  constexpr std::string_view kReasoning[] = {"none", "qwen3", "deepseek_r1", "openai_gptoss"};
  const AnswerParserOptions options{
      .names = {.tools = std::string(kTools[data[1] % std::size(kTools)]),
                .reasoning = std::string(kReasoning[data[0] & 3])},
      .start = static_cast<AnswerStart>((data[0] >> 3) % 3),
      .whole_tool_calls = (data[0] & 0x80) != 0};
  const std::string whole = Joined(options, text, text.size() + 1);
  for (const size_t piece : {1, 2, 7}) NIBBLE_CHECK(Joined(options, text, piece) == whole);
  return 0;
}
