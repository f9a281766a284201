#include "text/tokenizer/pattern.h"

#include "text/tokenizer/json_fields.h"

namespace nibble::text {

Result<Pattern> Pattern::Parse(const boost::json::value& spec, std::string_view what) {
  NIBBLE_ASSIGN(const boost::json::object* object, AsObject(spec, what));
  if (FindField(*object, "Regex") != nullptr) {
    NIBBLE_ASSIGN(const std::string_view expression, StringField(*object, "Regex", what));
    return FromExpression(expression, RegexSyntax::kOniguruma);
  }
  NIBBLE_ASSIGN(const std::string_view literal, StringField(*object, "String", what));
  if (literal.empty()) {
    return Fail(Code::kUnsupported, "tokenizer.json: {}: an empty string pattern is not supported",
                what);
  }
  return Pattern(std::string(literal));
}

// The known expressions mean the same in both syntaxes.
Result<Pattern> Pattern::FromExpression(std::string_view expression, RegexSyntax syntax) {
  if (const FindMatch known = FindKnownPattern(expression)) return Pattern(known);
  NIBBLE_ASSIGN(Regex regex, Regex::Compile(expression, syntax));
  return Pattern(std::move(regex));
}

Result<bool> Pattern::Find(std::string_view text, size_t from, Match* match) const {
  if (const Regex* regex = std::get_if<Regex>(&finder_)) return regex->Find(text, from, match);
  const std::string& literal = std::get<std::string>(finder_);
  const size_t at = text.find(literal, from);
  if (at == std::string_view::npos) return false;
  *match = {text.data() + at, text.data() + at + literal.size()};
  return true;
}

}  // namespace nibble::text
