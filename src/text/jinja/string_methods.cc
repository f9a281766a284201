// Methods of str.

#include <algorithm>
#include <iterator>
#include <utility>

#include "text/jinja/runtime.h"
#include "text/jinja/string_operations.h"
#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

using Args = BoundArguments;

// The characters to strip: none given or None means white space.
Result<StringPtr> OptionalText(const Args& args, size_t i, std::string_view what) {
  if (!args.Has(i) || args[i].IsNone()) return StringPtr();
  return ToText(args[i], what);
}

template <Side side>
Result<Value> DoStrip(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr chars, OptionalText(args, 0, "the characters to strip"));
  NIBBLE_TRY(runtime.Allocate(self.string().size()));
  StringPtr stripped = Strip(self.string(), chars.get(), side);
  const size_t looked_at =
      self.string().size() - stripped->size() + (chars != nullptr ? chars->size() : 0);
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(looked_at)));
  return Value(std::move(stripped));
}

// For what looks at every letter's properties.
Status SpendOnLetters(Runtime& runtime, const Value& self) {
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(self.string().size())));
  return runtime.Allocate(self.string().size());
}

// What a search from the right may cost: its worst case is the product of the sizes.
Status SpendOnReverseSearch(Runtime& runtime, const Value& self, const MarkedString& wanted) {
  const size_t product = self.string().size() * (wanted.size() + 1);  // sizes are below 2^25
  return runtime.Spend(static_cast<int64_t>(product / 64));
}

template <StringPtr (*map)(const MarkedString&)>
Result<Value> DoMap(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  return Value(map(self.string()));
}

Result<Value> DoTitle(Runtime& runtime, const Value& self, Args&) {
  const MarkedString& text = self.string();
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  StringBuilder out;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    const char32_t c = CodePointAt(text.bytes, at);
    out.AppendDerived(in_word ? LowerAt(text, at) : TitleOf(c), text, at, end);
    in_word = IsCased(c);
    at = end;
  }
  return runtime.MakeString(out, text.markup);
}

Result<Value> DoSwapCase(Runtime& runtime, const Value& self, Args&) {
  const MarkedString& text = self.string();
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  StringBuilder out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    const char32_t c = CodePointAt(text.bytes, at);
    if (IsUpper(c)) {
      out.AppendDerived(LowerAt(text, at), text, at, end);
    } else if (IsLower(c)) {
      out.AppendDerived(UpperOf(c), text, at, end);
    } else {
      out.AppendSlice(text, at, end);
    }
    at = end;
  }
  return runtime.MakeString(out, text.markup);
}

Result<Value> DoCaseFold(Runtime& runtime, const Value& self, Args&) {
  const MarkedString& text = self.string();
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  StringBuilder out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    out.AppendDerived(FoldOf(CodePointAt(text.bytes, at)), text, at, end);
    at = end;
  }
  return runtime.MakeString(out, text.markup);
}

// text[start:end] in bytes, from optional arguments at i and i + 1; nullopt when start lies beyond
// the text.
Result<std::optional<SplitAt>> Window(const MarkedString& text, const Args& args, size_t i) {
  const auto length = static_cast<Integer>(CountCodePoints(text));
  Integer bounds[2] = {0, length};
  for (size_t k = 0; k < 2; ++k) {
    if (!args.Has(i + k) || args[i + k].IsNone()) continue;
    NIBBLE_ASSIGN(bounds[k], ToInteger(args[i + k], "a position"));
    if (bounds[k] < 0) bounds[k] = std::max<Integer>(bounds[k] + length, 0);
  }
  if (bounds[0] > length || bounds[1] < bounds[0]) return std::nullopt;
  return std::optional<SplitAt>(
      SplitAt{ByteOffset(text, static_cast<size_t>(bounds[0])),
              ByteOffset(text, static_cast<size_t>(std::min(bounds[1], length)))});
}

template <bool start>
Result<Value> DoAffix(Runtime& runtime, const Value& self, Args& args) {
  const MarkedString& text = self.string();
  if (args.Has(1) || !text.ascii) NIBBLE_TRY(runtime.SpendOn(self));
  Values affixes = {args[0]};
  if (args[0].Is(Kind::kSequence) && args[0].sequence().type != Sequence::Type::kList) {
    affixes = args[0].sequence().items;
  }
  NIBBLE_ASSIGN(const std::optional<SplitAt> window, Window(text, args, 1));
  for (const Value& affix : affixes) {
    NIBBLE_ASSIGN(const StringPtr wanted, ToText(affix, start ? "startswith" : "endswith"));
    if (!window) continue;
    const auto view =
        std::string_view(text.bytes).substr(window->begin, window->end - window->begin);
    if (start ? view.starts_with(wanted->bytes) : view.ends_with(wanted->bytes)) return Value(true);
  }
  return Value(false);
}

Result<Value> DoReplace(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr old, ToText(args[0], "what to replace"));
  NIBBLE_ASSIGN(StringPtr with, ToText(args[1], "the replacement"));
  Integer count = -1;
  if (args.Has(2)) {
    NIBBLE_ASSIGN(count, ToInteger(args[2], "the count"));
  }
  if (self.string().markup && !with->markup) with = EscapeHtml(*with);
  return Replace(runtime, self.string(), *old, *with, count);
}

template <std::vector<SplitAt> (*split)(const MarkedString&, const MarkedString*, Integer)>
Result<Value> DoSplit(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr separator, OptionalText(args, 0, "the separator"));
  if (separator != nullptr && separator->size() == 0) {
    return Fail(Code::kInvalidArgument, "split: the separator is empty");
  }
  Integer most = -1;
  if (args.Has(1)) {
    NIBBLE_ASSIGN(most, ToInteger(args[1], "maxsplit"));
  }
  NIBBLE_TRY(runtime.SpendOn(self));
  if (separator != nullptr) NIBBLE_TRY(SpendOnReverseSearch(runtime, self, *separator));
  return MakePieces(runtime, self.string(), split(self.string(), separator.get(), most));
}

Result<Value> DoSplitLines(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  return MakePieces(runtime, self.string(),
                    SplitLines(self.string(), args.Has(0) && IsTrue(args[0])));
}

template <bool from_right>
Result<Value> DoPartition(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr separator, ToText(args[0], "the separator"));
  if (separator->size() == 0)
    return Fail(Code::kInvalidArgument, "partition: the separator is empty");
  const MarkedString& text = self.string();
  NIBBLE_TRY(runtime.Allocate(text.size()));
  if (from_right) NIBBLE_TRY(SpendOnReverseSearch(runtime, self, *separator));
  const size_t found =
      from_right ? text.bytes.rfind(separator->bytes) : FindBytes(text.bytes, separator->bytes);
  SplitAt cuts[3] = {{0, text.size()}, {text.size(), text.size()}, {text.size(), text.size()}};
  if (found != std::string::npos) {
    cuts[0] = {0, found};
    cuts[1] = {found, found + separator->size()};
    cuts[2] = {found + separator->size(), text.size()};
  } else if (from_right) {
    std::swap(cuts[0], cuts[2]);
  }
  Values parts;
  for (const SplitAt& cut : cuts) parts.emplace_back(Slice(text, cut.begin, cut.end));
  return runtime.MakeList(std::move(parts), Sequence::Type::kTuple);
}

Result<Value> DoJoin(Runtime& runtime, const Value& self, Args& args) {
  if (!IsIterable(args[0])) {
    return Fail(Code::kInvalidArgument, "join: '{}' object is not iterable", TypeName(args[0]));
  }
  NIBBLE_ASSIGN(const Values items, runtime.Items(args[0]));
  return Join(runtime, self.string(), items, false);
}

// The byte offset of a match in the window, nullopt if there is none.
template <bool from_right>
Result<std::optional<size_t>> Locate(Runtime& runtime, const Value& self, const Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  const MarkedString& text = self.string();
  NIBBLE_ASSIGN(const StringPtr wanted, ToText(args[0], "what to look for"));
  NIBBLE_ASSIGN(const std::optional<SplitAt> window, Window(text, args, 1));
  if (!window) return std::nullopt;
  const auto view = std::string_view(text.bytes).substr(window->begin, window->end - window->begin);
  if (from_right) NIBBLE_TRY(SpendOnReverseSearch(runtime, self, *wanted));
  const size_t found = from_right ? view.rfind(wanted->bytes) : FindBytes(view, wanted->bytes);
  if (found == view.npos) return std::nullopt;
  return std::optional<size_t>(window->begin + found);
}

template <bool from_right, bool must_exist>
Result<Value> DoFind(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const std::optional<size_t> found, Locate<from_right>(runtime, self, args));
  if (!found) {
    if (must_exist) return Fail(Code::kInvalidArgument, "substring not found");
    return Value(-1);
  }
  return Value(CountCodePoints(*Slice(self.string(), 0, *found)));
}

Result<Value> DoCount(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  const MarkedString& text = self.string();
  NIBBLE_ASSIGN(const StringPtr wanted, ToText(args[0], "what to count"));
  NIBBLE_ASSIGN(const std::optional<SplitAt> window, Window(text, args, 1));
  if (!window) return Value(0);
  if (wanted->size() == 0) {
    return Value(CountCodePoints(*Slice(text, window->begin, window->end)) + 1);
  }
  const auto view = std::string_view(text.bytes).substr(window->begin, window->end - window->begin);
  size_t count = 0;
  for (size_t at = FindBytes(view, wanted->bytes); at != view.npos;
       at = FindBytes(view, wanted->bytes, at + wanted->size())) {
    ++count;
  }
  return Value(count);
}

template <bool prefix>
Result<Value> DoRemoveAffix(Runtime& runtime, const Value& self, Args& args) {
  const MarkedString& text = self.string();
  NIBBLE_ASSIGN(const StringPtr affix, ToText(args[0], "what to remove"));
  const std::string_view view = text.bytes;
  if (prefix && view.starts_with(affix->bytes))
    return runtime.Slice(text, affix->size(), text.size());
  if (!prefix && view.ends_with(affix->bytes)) {
    return runtime.Slice(text, 0, text.size() - affix->size());
  }
  return self;
}

template <bool left, bool right>
Result<Value> DoPad(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const Integer width, ToInteger(args[0], "the width"));
  StringPtr fill = TrustedString(" ");
  if (args.Has(1)) {
    NIBBLE_ASSIGN(fill, ToText(args[1], "the fill character"));
  }
  if (CountCodePoints(*fill) != 1) {
    return Fail(Code::kInvalidArgument, "the fill character must be one character long");
  }
  if (self.string().markup) fill = EscapeHtml(*fill);
  return Pad(runtime, self.string(), width, *fill, left, right);
}

Result<Value> DoZeroFill(Runtime& runtime, const Value& self, Args& args) {
  const MarkedString& text = self.string();
  NIBBLE_ASSIGN(const Integer width, ToInteger(args[0], "the width"));
  const bool sign = text.size() > 0 && (text.bytes[0] == '-' || text.bytes[0] == '+');
  const StringPtr digits = Slice(text, sign ? 1 : 0, text.size());
  NIBBLE_ASSIGN(const Value padded,
                Pad(runtime, *digits, width - (sign ? 1 : 0), *TrustedString("0"), true, false));
  StringBuilder out;
  out.AppendSlice(text, 0, sign ? 1 : 0);
  out.Append(padded.string());
  return runtime.MakeString(out, text.markup);
}

Result<Value> DoExpandTabs(Runtime& runtime, const Value& self, Args& args) {
  Integer size = 8;
  if (args.Has(0)) {
    NIBBLE_ASSIGN(size, ToInteger(args[0], "tabsize"));
  }
  size = std::min<Integer>(size, static_cast<Integer>(kMaxStringBytes));
  const MarkedString& text = self.string();
  StringBuilder out;
  Integer column = 0;
  for (size_t at = 0; at < text.size() && !out.overflowed();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    if (text.bytes[at] == '\t') {
      const Integer spaces = size > 0 ? size - column % size : 0;
      out.AppendDerived(std::string(static_cast<size_t>(spaces), ' '), text, at, end);
      column += spaces;
    } else {
      out.AppendSlice(text, at, end);
      column = text.bytes[at] == '\n' || text.bytes[at] == '\r' ? 0 : column + 1;
    }
    at = end;
  }
  return runtime.MakeString(out, text.markup);
}

// str.isxxx: not empty, and true for every character.
template <bool (*predicate)(char32_t)>
Result<Value> DoAll(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  const MarkedString& text = self.string();
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) {
    if (!predicate(CodePointAt(text.bytes, at))) return Value(false);
  }
  return Value(text.size() > 0);
}

bool IsAlphaNumeric(char32_t c) { return IsAlpha(c) || IsDigit(c) || IsNumeric(c); }

Result<Value> DoIsAscii(Runtime&, const Value& self, Args&) { return Value(self.string().ascii); }

Result<Value> DoIsPrintable(Runtime& runtime, const Value& self, Args& args) {
  if (self.string().size() == 0) return Value(true);
  return DoAll<IsPrintable>(runtime, self, args);
}

Result<Value> DoIsIdentifier(Runtime& runtime, const Value& self, Args& args) {
  const MarkedString& text = self.string();
  if (text.size() == 0 || !IsIdentifierStart(CodePointAt(text.bytes, 0))) return Value(false);
  return DoAll<IsIdentifierPart>(runtime, self, args);
}

// str.islower and isupper: some letter has case, and none has the other one.
template <bool (*wanted)(char32_t)>
Result<Value> DoIsCase(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  const MarkedString& text = self.string();
  bool some = false;
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) {
    const char32_t c = CodePointAt(text.bytes, at);
    if (!IsCased(c)) continue;
    if (!wanted(c)) return Value(false);
    some = true;
  }
  return Value(some);
}

Result<Value> DoIsTitle(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_TRY(SpendOnLetters(runtime, self));
  const MarkedString& text = self.string();
  bool some = false, in_word = false;
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) {
    const char32_t c = CodePointAt(text.bytes, at);
    if (IsUpper(c) || IsTitle(c)) {
      if (in_word) return Value(false);
      in_word = some = true;
    } else if (IsLower(c)) {
      if (!in_word) return Value(false);
      some = true;
    } else {
      in_word = false;
    }
  }
  return Value(some);
}

Result<Value> DoFormat(Runtime& runtime, const Value& self, Args& args) {
  return FormatBraces(runtime, self.string(), args.rest);
}

constexpr Builtin kStringMethods[] = {
    {"capitalize", "", DoMap<Capitalize>},
    {"casefold", "", DoCaseFold},
    {"center", "/ width ?fillchar", DoPad<true, true>},
    {"count", "/ sub ?start ?end", DoCount},
    {"endswith", "/ suffix ?start ?end", DoAffix<false>},
    {"expandtabs", "?tabsize", DoExpandTabs},
    {"find", "/ sub ?start ?end", DoFind<false, false>},
    {"format", "*", DoFormat},
    {"index", "/ sub ?start ?end", DoFind<false, true>},
    {"isalnum", "", DoAll<IsAlphaNumeric>},
    {"isalpha", "", DoAll<IsAlpha>},
    {"isascii", "", DoIsAscii},
    {"isdecimal", "", DoAll<IsDecimal>},
    {"isdigit", "", DoAll<IsDigit>},
    {"isidentifier", "", DoIsIdentifier},
    {"islower", "", DoIsCase<IsLower>},
    {"isnumeric", "", DoAll<IsNumeric>},
    {"isprintable", "", DoIsPrintable},
    {"isspace", "", DoAll<IsSpace>},
    {"istitle", "", DoIsTitle},
    {"isupper", "", DoIsCase<IsUpper>},
    {"join", "/ iterable", DoJoin},
    {"ljust", "/ width ?fillchar", DoPad<false, true>},
    {"lower", "", DoMap<Lower>},
    {"lstrip", "/ ?chars", DoStrip<Side::kLeft>},
    {"partition", "/ sep", DoPartition<false>},
    {"removeprefix", "/ prefix", DoRemoveAffix<true>},
    {"removesuffix", "/ suffix", DoRemoveAffix<false>},
    {"replace", "/ old new ?count", DoReplace},
    {"rfind", "/ sub ?start ?end", DoFind<true, false>},
    {"rindex", "/ sub ?start ?end", DoFind<true, true>},
    {"rjust", "/ width ?fillchar", DoPad<true, false>},
    {"rpartition", "/ sep", DoPartition<true>},
    {"rsplit", "?sep ?maxsplit", DoSplit<SplitFromRight>},
    {"rstrip", "/ ?chars", DoStrip<Side::kRight>},
    {"split", "?sep ?maxsplit", DoSplit<Split>},
    {"splitlines", "?keepends", DoSplitLines},
    {"startswith", "/ prefix ?start ?end", DoAffix<true>},
    {"strip", "/ ?chars", DoStrip<Side::kBoth>},
    {"swapcase", "", DoSwapCase},
    {"title", "", DoTitle},
    {"upper", "", DoMap<Upper>},
    {"zfill", "/ width", DoZeroFill},
};

}  // namespace

const Builtin* FindStringMethod(std::string_view name) {
  const auto* at = std::find_if(std::begin(kStringMethods), std::end(kStringMethods),
                                [name](const Builtin& builtin) { return builtin.name == name; });
  return at == std::end(kStringMethods) ? nullptr : at;
}

}  // namespace nibble::text::jinja
