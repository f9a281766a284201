#include "text/jinja/string_operations.h"

#include <algorithm>

#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

// A set of code points, for strip.
std::vector<char32_t> CodePointsOf(const MarkedString& text) {
  std::vector<char32_t> set;
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) {
    set.push_back(CodePointAt(text.bytes, at));
  }
  std::sort(set.begin(), set.end());
  return set;
}

// The lower case of a capital sigma depends on what stands around it.
bool IsFinalSigma(const MarkedString& text, size_t at) {
  size_t before = at;
  bool cased_before = false;
  while (before > 0) {
    before = PreviousCodePoint(text.bytes, before);
    const char32_t c = CodePointAt(text.bytes, before);
    if (IsCaseIgnorable(c)) continue;
    cased_before = IsCased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t after = at + CodePointLength(text.bytes, at); after < text.size();
       after += CodePointLength(text.bytes, after)) {
    const char32_t c = CodePointAt(text.bytes, after);
    if (!IsCaseIgnorable(c)) return !IsCased(c);
  }
  return true;
}

template <typename Mapping>
void AppendMapped(StringBuilder& out, const MarkedString& text, size_t begin, Mapping mapping) {
  for (size_t at = begin; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    out.AppendDerived(mapping(at), text, at, end);
    at = end;
  }
}

bool SpaceAt(const MarkedString& text, size_t at) { return IsSpace(CodePointAt(text.bytes, at)); }

}  // namespace

std::string LowerAt(const MarkedString& text, size_t at) {
  constexpr char32_t kCapitalSigma = 0x3A3;
  const char32_t c = CodePointAt(text.bytes, at);
  if (c == kCapitalSigma && IsFinalSigma(text, at)) return EncodeUtf8(0x3C2);
  return LowerOf(c);
}

StringPtr Strip(const MarkedString& text, const MarkedString* chars, Side side) {
  const std::vector<char32_t> set =
      chars == nullptr ? std::vector<char32_t>() : CodePointsOf(*chars);
  const auto stripped = [&](size_t at) {
    const char32_t c = CodePointAt(text.bytes, at);
    return chars == nullptr ? IsSpace(c) : std::binary_search(set.begin(), set.end(), c);
  };
  size_t begin = 0, end = text.size();
  while (side != Side::kRight && begin < end && stripped(begin)) {
    begin += CodePointLength(text.bytes, begin);
  }
  while (side != Side::kLeft && end > begin) {
    const size_t last = PreviousCodePoint(text.bytes, end);
    if (!stripped(last)) break;
    end = last;
  }
  return Slice(text, begin, end);
}

StringPtr Upper(const MarkedString& text) {
  StringBuilder out;
  AppendMapped(out, text, 0, [&](size_t at) { return UpperOf(CodePointAt(text.bytes, at)); });
  return out.Finish(text.markup);
}

StringPtr Lower(const MarkedString& text) {
  StringBuilder out;
  AppendMapped(out, text, 0, [&](size_t at) { return LowerAt(text, at); });
  return out.Finish(text.markup);
}

StringPtr Capitalize(const MarkedString& text) {
  StringBuilder out;
  if (text.size() > 0) {
    const size_t first = CodePointLength(text.bytes, 0);
    out.AppendDerived(TitleOf(CodePointAt(text.bytes, 0)), text, 0, first);
    AppendMapped(out, text, first, [&](size_t at) { return LowerAt(text, at); });
  }
  return out.Finish(text.markup);
}

Result<Value> Replace(Runtime& runtime, const MarkedString& text, const MarkedString& old,
                      const MarkedString& with, Integer count) {
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(text.size() / 16)));
  if (count < 0) count = static_cast<Integer>(text.size()) + 1;
  StringBuilder out;
  size_t at = 0;
  if (old.size() == 0) {  // between all code points
    while (count-- > 0 && !out.overflowed()) {
      out.Append(with);
      if (at >= text.size()) break;
      const size_t end = at + CodePointLength(text.bytes, at);
      out.AppendSlice(text, at, end);
      at = end;
    }
  } else {
    while (count-- > 0 && !out.overflowed()) {
      const size_t found = FindBytes(text.bytes, old.bytes, at);
      if (found == std::string::npos) break;
      out.AppendSlice(text, at, found);
      out.Append(with);
      at = found + old.size();
    }
  }
  out.AppendSlice(text, at, text.size());
  return runtime.MakeString(out, text.markup);
}

std::vector<SplitAt> Split(const MarkedString& text, const MarkedString* separator, Integer most) {
  std::vector<SplitAt> pieces;
  size_t at = 0;
  if (separator != nullptr) {
    while (most < 0 || static_cast<Integer>(pieces.size()) < most) {
      const size_t found = FindBytes(text.bytes, separator->bytes, at);
      if (found == std::string::npos) break;
      pieces.push_back({at, found});
      at = found + separator->size();
    }
    pieces.push_back({at, text.size()});
    return pieces;
  }
  const auto skip_space = [&] {
    while (at < text.size() && SpaceAt(text, at)) at += CodePointLength(text.bytes, at);
  };
  for (skip_space(); at < text.size(); skip_space()) {
    if (most >= 0 && static_cast<Integer>(pieces.size()) == most) {
      pieces.push_back({at, text.size()});  // Python keeps white space at the end of the rest
      return pieces;
    }
    const size_t begin = at;
    while (at < text.size() && !SpaceAt(text, at)) at += CodePointLength(text.bytes, at);
    pieces.push_back({begin, at});
  }
  return pieces;
}

std::vector<SplitAt> SplitFromRight(const MarkedString& text, const MarkedString* separator,
                                    Integer most) {
  std::vector<SplitAt> pieces;
  size_t end = text.size();
  if (separator != nullptr) {
    while (most < 0 || static_cast<Integer>(pieces.size()) < most) {
      if (end < separator->size()) break;
      const size_t found = text.bytes.rfind(separator->bytes, end - separator->size());
      if (found == std::string::npos) break;
      pieces.push_back({found + separator->size(), end});
      end = found;
    }
    pieces.push_back({0, end});
  } else {
    const auto skip_space = [&] {
      while (end > 0 && SpaceAt(text, PreviousCodePoint(text.bytes, end))) {
        end = PreviousCodePoint(text.bytes, end);
      }
    };
    for (skip_space(); end > 0; skip_space()) {
      if (most >= 0 && static_cast<Integer>(pieces.size()) == most) {
        pieces.push_back({0, end});
        break;
      }
      const size_t last = end;
      while (end > 0 && !SpaceAt(text, PreviousCodePoint(text.bytes, end))) {
        end = PreviousCodePoint(text.bytes, end);
      }
      pieces.push_back({end, last});
    }
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<SplitAt> SplitLines(const MarkedString& text, bool keep_ends) {
  std::vector<SplitAt> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    size_t next = at + CodePointLength(text.bytes, at);
    if (IsLineBreak(CodePointAt(text.bytes, at))) {
      if (text.bytes[at] == '\r' && next < text.size() && text.bytes[next] == '\n') ++next;
      lines.push_back({begin, keep_ends ? next : at});
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back({begin, text.size()});
  return lines;
}

Result<Value> MakePieces(Runtime& runtime, const MarkedString& text,
                         const std::vector<SplitAt>& pieces) {
  NIBBLE_TRY(runtime.Allocate(text.size() + pieces.size() * sizeof(MarkedString)));
  Values items;
  items.reserve(pieces.size());
  for (const SplitAt& piece : pieces) items.emplace_back(Slice(text, piece.begin, piece.end));
  return runtime.MakeList(std::move(items));
}

Result<Value> Pad(Runtime& runtime, const MarkedString& text, Integer width,
                  const MarkedString& fill, bool left, bool right) {
  const auto length = static_cast<Integer>(CountCodePoints(text));
  const Integer missing = std::max<Integer>(width - length, 0);
  if (missing > static_cast<Integer>(kMaxStringBytes)) {
    return Fail(Code::kInvalidArgument, "a string of the template grows past {} bytes",
                kMaxStringBytes);
  }
  // str.center puts the odd space to the left of an odd width.
  const Integer before = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
  StringBuilder out;
  for (Integer i = 0; i < before; ++i) out.Append(fill);
  out.Append(text);
  for (Integer i = before; i < missing; ++i) out.Append(fill);
  return runtime.MakeString(out, text.markup);
}

Result<Value> Join(Runtime& runtime, const MarkedString& separator, const Values& items,
                   bool convert) {
  StringBuilder out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(separator);
    if (!convert && !items[i].IsString()) {
      return Fail(Code::kInvalidArgument, "join: item {} must be a string, not '{}'", i,
                  TypeName(items[i]));
    }
    NIBBLE_ASSIGN(const StringPtr text, runtime.Str(items[i]));
    if (separator.markup && !convert && !items[i].string().markup) {
      out.Append(*EscapeHtml(*text));
    } else {
      out.Append(*text);
    }
    if (out.overflowed()) break;
  }
  return runtime.MakeString(out, separator.markup && !convert);
}

}  // namespace nibble::text::jinja
