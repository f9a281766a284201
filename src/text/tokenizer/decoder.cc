#include "text/tokenizer/decoder.h"

#include <algorithm>
#include <optional>

#include "text/tokenizer/byte_alphabet.h"
#include "text/tokenizer/json_fields.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr int kMaxNesting = 16;
constexpr size_t kMaxSteps = 32;
constexpr size_t kMaxGrowth = 1024;
constexpr int64_t kMaxStrip = 1024;
constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// The byte of a token like <0x0A>.
std::optional<char> FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const char lower = static_cast<char>(c | 32);
    if (c >= '0' && c <= '9') {
      value = value * 16 + (c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value * 16 + (lower - 'a' + 10);
    } else {
      return std::nullopt;
    }
  }
  return static_cast<char>(value);
}

std::string ReplaceMatches(const Pattern& pattern, std::string_view content,
                           std::string_view token) {
  std::string result;
  const char* done = token.data();
  const auto replace = [&](const Match& match) {
    result.append(done, match.begin).append(content);
    done = match.end;
  };
  // A token that exceeds the match limits stays as it is: decoding has no way to fail.
  if (!pattern.ForEachMatch(token, replace)) return std::string(token);
  return result.append(done, token.data() + token.size());
}

// A run of byte tokens that is no valid UTF-8 becomes one U+FFFD per byte.
std::string TextOfByteRun(std::string_view bytes) {
  if (FindInvalidUtf8(bytes) == bytes.size()) return std::string(bytes);
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) text += kReplacementCharacter;
  return text;
}

// Bytes of up to `limit` characters `c` at the start of text.
size_t LeadingBytes(std::string_view text, char32_t c, size_t limit) {
  const char* const end = text.data() + text.size();
  const char* p = text.data();
  for (size_t n = 0; n < limit && p < end; ++n) {
    const char* next = p;
    if (NextCodePoint(next) != c) break;
    p = next;
  }
  return static_cast<size_t>(p - text.data());
}

// Bytes of up to `limit` characters `c` at the end of text.
size_t TrailingBytes(std::string_view text, char32_t c, size_t limit) {
  const char* const end = text.data() + text.size();
  const char* p = end;
  for (size_t n = 0; n < limit && p > text.data(); ++n) {
    const char* last = PreviousCodePoint(text.data(), p);
    const char* q = last;
    if (NextCodePoint(q) != c) break;
    p = last;
  }
  return static_cast<size_t>(end - p);
}

std::string ReplaceCharacter(std::string_view token, char32_t from, std::string_view to) {
  std::string result;
  const char* const end = token.data() + token.size();
  for (const char* p = token.data(); p < end;) {
    const char* start = p;
    if (NextCodePoint(p) == from) {
      result += to;
    } else {
      result.append(start, p);
    }
  }
  return result;
}

size_t Utf8Size(char32_t c) {
  std::string text;
  AppendUtf8(c, &text);
  return text.size();
}

std::string AlphabetBytesOrText(std::string_view token) {
  return AlphabetToBytes(token).value_or(std::string(token));
}

}  // namespace

Result<Decoder> Decoder::Parse(const boost::json::value& spec) {
  Decoder decoder;
  if (spec.is_null()) {
    decoder.steps_.emplace_back(JoinWithSpaces{});
  } else {
    NIBBLE_TRY(decoder.ParseStep(spec, 0));
  }
  return decoder;
}

Status Decoder::RefuseAfterFuse(std::string_view type) const {
  if (!fused_) return {};
  return Fail(Code::kUnsupported,
              "tokenizer.json: decoder {} after Fuse or ByteLevel is not supported", type);
}

Status Decoder::ParseStep(const boost::json::value& spec, int depth) {
  if (depth > kMaxNesting || steps_.size() > kMaxSteps) {
    return Fail(Code::kInvalidArgument,
                "tokenizer.json: decoder is nested more than {} deep or has more than {} steps",
                kMaxNesting, kMaxSteps);
  }
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(spec, "decoder"));
  NIBBLE_ASSIGN(const std::string_view type, StringField(*object, "type", "decoder"));
  const std::string what = fmt::format("decoder {}", type);
  if (type == "Sequence") {
    NIBBLE_ASSIGN(const boost::json::array* members, ArrayField(*object, "decoders", what));
    for (const boost::json::value& member : *members) NIBBLE_TRY(ParseStep(member, depth + 1));
  } else if (type == "ByteLevel") {
    NIBBLE_TRY(RefuseAfterFuse(type));
    steps_.emplace_back(ByteLevel{});
    fused_ = true;
  } else if (type == "ByteFallback") {
    NIBBLE_TRY(RefuseAfterFuse(type));
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.emplace_back(Fuse{});
    fused_ = true;
  } else if (type == "Strip") {
    NIBBLE_ASSIGN(const char32_t content, CharField(*object, "content", what));
    NIBBLE_ASSIGN(const int64_t start, IntField(*object, "start", what));
    NIBBLE_ASSIGN(const int64_t stop, IntField(*object, "stop", what));
    if (start < 0 || start > kMaxStrip || stop < 0 || stop > kMaxStrip) {
      return Fail(Code::kUnsupported, "tokenizer.json: {}: start and stop must be from 0 to {}",
                  what, kMaxStrip);
    }
    steps_.emplace_back(
        Strip{content, static_cast<size_t>(start), static_cast<size_t>(stop), fused_});
  } else if (type == "Replace") {
    NIBBLE_TRY(RefuseAfterFuse(type));
    const boost::json::value* pattern = FindField(*object, "pattern");
    if (pattern == nullptr) {
      return Fail(Code::kInvalidArgument, "tokenizer.json: {}: field \"pattern\" is missing", what);
    }
    NIBBLE_ASSIGN(Pattern parsed, Pattern::Parse(*pattern, what));
    NIBBLE_ASSIGN(const std::string_view content, StringField(*object, "content", what));
    max_growth_ *= std::max<size_t>(1, std::min(content.size(), kMaxGrowth + 1));
    if (max_growth_ > kMaxGrowth) {
      return Fail(Code::kUnsupported, "tokenizer.json: {}: grows tokens more than {} times", what,
                  kMaxGrowth);
    }
    steps_.emplace_back(Replace{std::move(parsed), std::string(content)});
  } else if (type == "Metaspace") {
    NIBBLE_TRY(RefuseAfterFuse(type));
    NIBBLE_ASSIGN(const char32_t replacement, CharField(*object, "replacement", what));
    NIBBLE_ASSIGN(const bool add_prefix_space, BoolField(*object, "add_prefix_space", what, true));
    std::string_view scheme = "always";
    if (FindField(*object, "prepend_scheme") != nullptr) {
      NIBBLE_ASSIGN(scheme, StringField(*object, "prepend_scheme", what));
    }
    steps_.emplace_back(Metaspace{replacement, add_prefix_space && scheme != "never"});
  } else {
    return Fail(Code::kUnsupported,
                "tokenizer.json: decoder \"{}\" is not supported (ByteLevel, ByteFallback, Fuse, "
                "Strip, Replace, Metaspace and Sequence are)",
                type);
  }
  return {};
}

void Decoder::Push(std::string_view token, State* state, std::string* out) const {
  PushTo(0, token, state, out);
}

void Decoder::Finish(State* state, std::string* out) const { FinishFrom(0, state, out); }

void Decoder::PushTo(size_t at, std::string_view token, State* state, std::string* out) const {
  if (at == steps_.size()) {
    *out += token;
    return;
  }
  const Step& step = steps_[at];
  StepState& mine = (*state)[at];
  const auto next = [&](std::string_view text) { PushTo(at + 1, text, state, out); };
  if (std::holds_alternative<ByteLevel>(step)) {
    mine.held += AlphabetBytesOrText(token);
    std::string text;
    mine.held.erase(0, AppendLossyUtf8(mine.held, /*final=*/false, &text));
    if (!text.empty()) next(text);
  } else if (std::holds_alternative<ByteFallback>(step)) {
    if (const std::optional<char> byte = FallbackByte(token)) {
      mine.held += *byte;
      return;
    }
    if (!mine.held.empty()) next(TextOfByteRun(mine.held));
    mine.held.clear();
    next(token);
  } else if (std::holds_alternative<JoinWithSpaces>(step)) {
    if (mine.started) next(" ");
    mine.started = true;
    next(token);
  } else if (const auto* strip = std::get_if<Strip>(&step)) {
    size_t left = 0;
    if (!mine.started) left = LeadingBytes(token, strip->content, strip->start - mine.stripped);
    std::string rest = mine.held;
    rest += token.substr(left);
    const size_t right = TrailingBytes(rest, strip->content, strip->stop);
    if (strip->fused) {
      mine.held = rest.substr(rest.size() - right);
      mine.stripped += left / Utf8Size(strip->content);
      mine.started = mine.started || left < token.size();
    }
    rest.resize(rest.size() - right);
    next(rest);
  } else if (const auto* replace = std::get_if<Replace>(&step)) {
    next(ReplaceMatches(replace->pattern, replace->content, token));
  } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
    const bool drop = metaspace->drops_first && !mine.started;
    mine.started = true;
    next(ReplaceCharacter(token, metaspace->replacement, drop ? "" : " "));
  } else {
    next(token);  // Fuse: from here on tokens are parts of one string
  }
}

void Decoder::FinishFrom(size_t at, State* state, std::string* out) const {
  if (at == steps_.size()) return;
  std::string held = std::move((*state)[at].held);
  (*state)[at] = StepState();
  if (!held.empty()) {
    if (std::holds_alternative<ByteLevel>(steps_[at])) {
      std::string text;
      AppendLossyUtf8(held, /*final=*/true, &text);
      PushTo(at + 1, text, state, out);
    } else if (std::holds_alternative<ByteFallback>(steps_[at])) {
      PushTo(at + 1, TextOfByteRun(held), state, out);
    }  // what Strip holds is at the end: it goes
  }
  FinishFrom(at + 1, state, out);
}

std::string Decoder::TokenBytes(std::string_view token) const {
  std::string bytes(token);
  for (const Step& step : steps_) {
    if (std::holds_alternative<ByteLevel>(step)) {
      bytes = AlphabetBytesOrText(bytes);
    } else if (std::holds_alternative<ByteFallback>(step)) {
      // A lone byte is no text: nothing that follows may read it as UTF-8.
      if (const std::optional<char> byte = FallbackByte(bytes)) return std::string(1, *byte);
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      bytes = ReplaceMatches(replace->pattern, replace->content, bytes);
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      bytes = ReplaceCharacter(bytes, metaspace->replacement, " ");
    }
  }
  return bytes;
}

}  // namespace nibble::text
