#include "text/tool_parsers/json_call.h"

#include <boost/json.hpp>

#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

// The value of a complete JSON string literal; nullopt for one that pairs no surrogates.
std::optional<std::string> DecodeString(std::string_view literal) {
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(literal, error);
  if (error || !value.is_string()) return std::nullopt;
  return std::string(value.get_string());
}

}  // namespace

std::string JsonCall::FinalArguments() const {
  if (!has_arguments_) return "{}";
  if (arguments_[0] != '"') return arguments_;
  return DecodeString(arguments_).value_or(arguments_);
}

JsonCall::Step JsonCall::Push(char c) {
  switch (state_) {
    case State::kBegin:
      if (IsSpace(c)) return Step::kMore;
      state_ = State::kFirstKey;
      return c == '{' ? Step::kMore : Step::kInvalid;
    case State::kFirstKey:
    case State::kKey:
      if (IsSpace(c)) return Step::kMore;
      if (c != '"') return Step::kInvalid;  // an object without a name is no call either
      text_.assign(1, c);
      scanner_ = JsonScanner();
      scanner_.Push(c);
      state_ = State::kInKey;
      return Step::kMore;
    case State::kInKey: {
      const JsonScanner::Step step = scanner_.Push(c);
      if (step == JsonScanner::Step::kInvalid) return Step::kInvalid;
      text_ += c;
      if (step == JsonScanner::Step::kDone) state_ = State::kColon;
      return Step::kMore;
    }
    case State::kColon:
      if (IsSpace(c)) return Step::kMore;
      if (c != ':') return Step::kInvalid;
      field_ = text_ == "\"name\"" ? Field::kName
               : (text_ == "\"arguments\"" || text_ == "\"parameters\"") && !has_arguments_
                   ? Field::kArguments
                   : Field::kOther;
      text_.clear();
      scanner_ = JsonScanner();
      value_begun_ = false;
      state_ = State::kValue;
      return Step::kMore;
    case State::kValue:
      return PushValue(c);
    case State::kAfterValue:
      if (IsSpace(c)) return Step::kMore;
      if (c == ',') {
        state_ = State::kKey;
        return Step::kMore;
      }
      return c == '}' && name_ ? Step::kDone : Step::kInvalid;
  }
  return Step::kInvalid;
}

JsonCall::Step JsonCall::PushValue(char c) {
  const JsonScanner::Step step = scanner_.Push(c);
  if (step == JsonScanner::Step::kInvalid) return Step::kInvalid;
  if (step == JsonScanner::Step::kDoneBefore) {
    if (EndValue() == Step::kInvalid) return Step::kInvalid;
    return Push(c);
  }
  if (value_begun_ || !IsSpace(c)) {
    value_begun_ = true;
    if (field_ == Field::kArguments) {
      has_arguments_ = true;
      arguments_ += c;
    } else {
      text_ += c;
    }
  }
  return step == JsonScanner::Step::kDone ? EndValue() : Step::kMore;
}

JsonCall::Step JsonCall::EndValue() {
  state_ = State::kAfterValue;
  if (field_ == Field::kArguments) {
    arguments_complete_ = true;
    if (arguments_[0] == '"' && !DecodeString(arguments_)) return Step::kInvalid;
  }
  if (field_ == Field::kName) {
    name_ = DecodeString(text_);
    if (!name_ || name_->empty()) return Step::kInvalid;
  }
  return Step::kMore;
}

}  // namespace nibble::text
