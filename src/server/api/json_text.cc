#include "server/api/json_text.h"

#include <fmt/core.h>

#include <cmath>

namespace nibble::server {
namespace {

constexpr size_t kMaxDepth = 64;

// Length of the well-formed UTF-8 sequence at the front, or 0; `bad` is then the length of the
// maximal subpart that one U+FFFD stands for.
size_t SequenceLength(std::string_view text, size_t& bad) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  bad = 1;
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte has a narrower range after four leads: no overlong forms, surrogates, >
  // U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) return 0;
    const bool good = i == 1 ? byte(i) >= low && byte(i) <= high : (byte(i) & 0xC0) == 0x80;
    if (!good) return 0;
    bad = i + 1;
  }
  return length;
}

}  // namespace

Result<boost::json::value> ParseJson(std::string_view text) {
  boost::json::parse_options options;
  options.max_depth = kMaxDepth;
  boost::json::stream_parser parser({}, options);
  boost::json::error_code error;
  const size_t read = parser.write_some(text.data(), text.size(), error);
  if (!error) parser.finish(error);
  if (error == boost::json::error::too_deep) {
    return Fail(Code::kInvalidArgument, "JSON is nested deeper than {} levels", kMaxDepth);
  }
  if (error == boost::json::error::incomplete) {
    return Fail(Code::kInvalidArgument, "malformed JSON: the text ends too early");
  }
  if (error) {
    return Fail(Code::kInvalidArgument, "malformed JSON near byte {}: {}", read, error.message());
  }
  for (const char c : text.substr(read)) {
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
      return Fail(Code::kInvalidArgument, "malformed JSON: something follows the value at byte {}",
                  read);
    }
  }
  return parser.release();
}

void AppendJsonString(std::string& out, std::string_view text) {
  out += '"';
  size_t from = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    out.append(text, from, i - from);
    from = i + 1;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        out += fmt::format("\\u{:04x}", c);
    }
  }
  out.append(text, from, text.size() - from);
  out += '"';
}

void AppendJsonFloat(std::string& out, float value) {
  constexpr float kInsteadOfInfinity = -9999.0f;
  const std::string digits = fmt::format("{}", std::isfinite(value) ? value : kInsteadOfInfinity);
  out += digits;
  if (digits.find_first_of(".e") == std::string::npos) out += ".0";
}

std::string ValidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t bad = 0;
    const size_t length = SequenceLength(bytes, bad);
    if (length > 0) {
      out.append(bytes.substr(0, length));
    } else {
      out += "\xEF\xBF\xBD";
    }
    bytes.remove_prefix(length > 0 ? length : bad);
  }
  return out;
}

size_t CountCodePoints(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

}  // namespace nibble::server
