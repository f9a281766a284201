// A `pattern` of tokenizer.json, {"String": ..} or {"Regex": ..}, and the walk over its matches.
#pragma once

#include <boost/json.hpp>

#include <string>
#include <string_view>
#include <variant>

#include "base/error.h"
#include "text/tokenizer/regex.h"
#include "text/tokenizer/split_patterns.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

class Pattern {
 public:
  // `what` names the component in errors.
  static Result<Pattern> Parse(const boost::json::value& spec, std::string_view what);
  static Pattern Known(FindMatch find) { return Pattern(find); }
  static Result<Pattern> FromExpression(std::string_view expression, RegexSyntax syntax);

  // Calls on_match(Match) for the matches from left to right. An empty match right behind another
  // match does not count.
  template <typename OnMatch>
  Status ForEachMatch(std::string_view text, OnMatch on_match) const;

 private:
  using Finder = std::variant<FindMatch, std::string, Regex>;
  explicit Pattern(Finder finder) : finder_(std::move(finder)) {}
  Result<bool> Find(std::string_view text, size_t from, Match* match) const;
  Finder finder_;
};

template <typename OnMatch>
Status Pattern::ForEachMatch(std::string_view text, OnMatch on_match) const {
  const char* const end = text.data() + text.size();
  Match match;
  if (const FindMatch* find = std::get_if<FindMatch>(&finder_)) {  // never finds empty matches
    for (const char* p = text.data(); (*find)(p, end, &match); p = match.end) on_match(match);
    return {};
  }
  const char* from = text.data();
  const char* last_end = nullptr;
  for (;;) {
    NIBBLE_ASSIGN(const bool found, Find(text, static_cast<size_t>(from - text.data()), &match));
    if (!found) return {};
    if (match.begin == match.end && match.end == last_end) {
      if (from == end) return {};
      NextCodePoint(from);
      continue;
    }
    on_match(match);
    from = last_end = match.end;
  }
}

}  // namespace nibble::text
