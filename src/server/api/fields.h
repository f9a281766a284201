// The table of request fields: one row per field of the OpenAI API and its vLLM extensions, with
// its type, its range and what happens to it. Parsing, validation and documentation come from this
// table.
//
// Rules: null means absent; unknown fields are ignored, clients send many; a known field that is
// not there yet is refused by name unless its value asks for nothing. Nothing is silently changed.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "server/api/errors.h"
#include "server/api/requests.h"

namespace nibble::server {

enum Api : unsigned {
  kChat = 1,
  kCompletions = 2,
  kTokenize = 4,
  kDetokenize = 8,
  kGenerate = kChat | kCompletions,
  kAllApis = 15,
};

enum class Treatment { kUsed, kIgnored, kRefused };

using ApiStatus = ApiResult<void>;

struct Field {
  std::string_view name;
  unsigned apis = 0;
  std::string_view type;  // "integer", "list of strings", ...
  std::string range;      // for people: "0 to 2"; empty if none
  Treatment treatment = Treatment::kUsed;
  // Checks the value (never null) and stores it. The request is the struct of one of `apis`.
  std::function<ApiStatus(const boost::json::value&, GenerationRequest&)> set;
};

std::span<const Field> FieldTable();

// From the text of a body. Errors are 400 and name the field.
ApiResult<ChatRequest> ParseChatRequest(std::string_view body);
ApiResult<CompletionRequest> ParseCompletionRequest(std::string_view body);
ApiResult<TokenizeRequest> ParseTokenizeRequest(std::string_view body);
ApiResult<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body);

// The caps of the table that a caller may meet.
inline constexpr int64_t kMaxChoices = 64;
inline constexpr size_t kMaxPrompts = 256;  // of one request
inline constexpr size_t kMaxStopStrings = 32;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr size_t kMaxMessages = 8192;
inline constexpr size_t kMaxTools = 512;

}  // namespace nibble::server
