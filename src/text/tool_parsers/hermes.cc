// Hermes tool calls: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, several in a row,
// text around them. Qwen2.5, Qwen3 and Hermes models write them.
//
// A state machine over characters, so that the result cannot depend on how the text was cut. Text
// is held back while it is white space or the beginning of a tag. A call ends with its JSON object,
// whose strings may contain anything, tags too; the closing tag is then swallowed, and its absence
// is no error. Stray closing brackets after the object, a common slip of small models, go with it.

#include <boost/json.hpp>

#include <optional>

#include "text/tool_parsers/json_scanner.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {
namespace {

constexpr std::string_view kOpenTag = "<tool_call>";
constexpr std::string_view kCloseTag = "</tool_call>";

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// The value of a complete JSON string literal; nullopt for one that pairs no surrogates.
std::optional<std::string> DecodeString(std::string_view literal) {
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(literal, error);
  if (error || !value.is_string()) return std::nullopt;
  return std::string(value.get_string());
}

// Reads the JSON object of one call.
class CallReader {
 public:
  enum class Step { kMore, kDone, kInvalid };

  Step Push(char c);

  const std::optional<std::string>& name() const { return name_; }
  bool has_arguments() const { return has_arguments_; }
  bool arguments_complete() const { return arguments_complete_; }
  // The name and the first character of the arguments are known, and these are no string, whose
  // text is known only at its end.
  bool can_stream() const { return name_ && has_arguments_ && arguments_[0] != '"'; }
  // The arguments so far, as the model wrote them.
  const std::string& arguments() const { return arguments_; }
  // The arguments of a complete call. Some models write them as a string that holds JSON.
  std::string FinalArguments() const {
    if (!has_arguments_) return "{}";
    if (arguments_[0] != '"') return arguments_;
    return DecodeString(arguments_).value_or(arguments_);
  }

 private:
  enum class State { kBegin, kFirstKey, kKey, kInKey, kColon, kValue, kAfterValue };
  enum class Field { kName, kArguments, kOther };

  Step PushValue(char c);
  Step EndValue();

  State state_ = State::kBegin;
  Field field_ = Field::kOther;
  JsonScanner scanner_;
  std::string text_;  // the key, or the value of a field that is not `arguments`
  bool value_begun_ = false;
  std::optional<std::string> name_;
  std::string arguments_;
  bool has_arguments_ = false;
  bool arguments_complete_ = false;
};

CallReader::Step CallReader::Push(char c) {
  switch (state_) {
    case State::kBegin:
      if (IsSpace(c)) return Step::kMore;
      state_ = State::kFirstKey;
      return c == '{' ? Step::kMore : Step::kInvalid;
    case State::kFirstKey:
    case State::kKey:
      if (IsSpace(c)) return Step::kMore;
      if (c != '"') return Step::kInvalid;  // an object without a name is no call either
      text_ = "\"";
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

CallReader::Step CallReader::PushValue(char c) {
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

CallReader::Step CallReader::EndValue() {
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

class HermesParser : public ToolParser {
 public:
  explicit HermesParser(bool whole_tool_calls) : whole_(whole_tool_calls) {}

  std::string_view opening_tag() const override { return kOpenTag; }

  void Push(std::string_view text, AnswerWriter& out) override {
    for (const char c : text) PushCharacter(c, out);
    if (state_ == State::kCall) StreamArguments(out);
  }

  void Finish(AnswerWriter& out) override {
    switch (state_) {
      case State::kText:
        if (after_call_ && partial_.empty()) return;
        FlushHeld(out);
        return;
      case State::kCall:
        // Cut off in the middle: what was started keeps its arguments so far.
        StreamArguments(out);
        if (!started_) GiveUp(out);
        return;
      case State::kBrokenArguments:
        EndBrokenArguments(out);
        return;
    }
  }

 private:
  enum class State {
    kText,
    kCall,             // after the opening tag, inside the object
    kBrokenArguments,  // a call that was already reported turned out not to be JSON
  };

  void PushCharacter(char c, AnswerWriter& out) {
    switch (state_) {
      case State::kText:
        PushText(c, out);
        return;
      case State::kCall:
        PushCall(c, out);
        return;
      case State::kBrokenArguments:
        held_ += c;
        if (held_.ends_with(kCloseTag)) {
          held_.resize(held_.size() - kCloseTag.size());
          EndBrokenArguments(out);
        } else if (held_.ends_with(kOpenTag)) {
          held_.resize(held_.size() - kOpenTag.size());
          EndBrokenArguments(out);
          BeginCall();
        }
        return;
    }
  }

  // ---- Text: held_ is white space that may touch a tag, partial_ what may become one ----

  bool ContinuesTag(char c) const {
    const std::string candidate = partial_ + c;
    return kOpenTag.starts_with(candidate) || (after_call_ && kCloseTag.starts_with(candidate));
  }

  // White space; right after a call its stray closing brackets too.
  bool IsHeld(char c) const { return IsSpace(c) || (after_call_ && (c == '}' || c == ']')); }

  void PushText(char c, AnswerWriter& out) {
    if (ContinuesTag(c)) {
      partial_ += c;
      if (partial_ == kOpenTag) BeginCall();
      if (partial_ == kCloseTag) {
        partial_.clear();
        held_.clear();
      }
      return;
    }
    if (!partial_.empty()) FlushHeld(out);
    if (ContinuesTag(c)) {
      partial_ += c;
    } else if (IsHeld(c)) {
      held_ += c;
    } else {
      FlushHeld(out);
      out.Content({&c, 1});
    }
  }

  // It was text after all. White space that touches a call stays out of it.
  void FlushHeld(AnswerWriter& out) {
    if (!after_call_) out.Content(held_);
    out.Content(partial_);
    held_.clear();
    partial_.clear();
    after_call_ = false;
  }

  // ---- Calls: raw_ is all text since the white space before the tag ----

  void BeginCall() {
    raw_ = after_call_ ? std::string() : held_;
    raw_ += kOpenTag;
    held_.clear();
    partial_.clear();
    reader_ = CallReader();
    started_ = false;
    sent_ = 0;
    state_ = State::kCall;
  }

  void PushCall(char c, AnswerWriter& out) {
    switch (reader_.Push(c)) {
      case CallReader::Step::kMore:
        if (!started_) raw_ += c;
        return;
      case CallReader::Step::kDone:
        EndCall(out);
        return;
      case CallReader::Step::kInvalid:
        Break(c, out);
        return;
    }
  }

  void Start(AnswerWriter& out) {
    started_ = true;
    raw_.clear();
    out.StartToolCall(index_, *reader_.name());
  }

  void StreamArguments(AnswerWriter& out) {
    if (whole_ || !reader_.can_stream()) return;
    if (!started_) Start(out);
    out.ToolCallArguments(index_, std::string_view(reader_.arguments()).substr(sent_));
    sent_ = reader_.arguments().size();
  }

  void EndCall(AnswerWriter& out) {
    if (!started_) Start(out);
    out.ToolCallArguments(index_, std::string_view(reader_.FinalArguments()).substr(sent_));
    LeaveCall();
  }

  void LeaveCall() {
    ++index_;
    after_call_ = true;
    state_ = State::kText;
  }

  // The object cannot go on with c.
  void Break(char c, AnswerWriter& out) {
    StreamArguments(out);
    if (!started_) {
      GiveUp(out);
      PushCharacter(c, out);
    } else if (reader_.arguments_complete()) {
      LeaveCall();
      PushCharacter(c, out);
    } else {
      held_.clear();
      state_ = State::kBrokenArguments;
      PushCharacter(c, out);
    }
  }

  // Not a call: its text is content.
  void GiveUp(AnswerWriter& out) {
    out.Content(raw_);
    raw_.clear();
    after_call_ = false;
    state_ = State::kText;
  }

  // The rest of the broken arguments, without the brace that closes the call.
  void EndBrokenArguments(AnswerWriter& out) {
    const auto strip_space = [&] {
      while (!held_.empty() && IsSpace(held_.back())) held_.pop_back();
    };
    strip_space();
    if (held_.ends_with('}')) held_.pop_back();
    strip_space();
    out.ToolCallArguments(index_, held_);
    held_.clear();
    LeaveCall();
  }

  const bool whole_;
  State state_ = State::kText;
  bool after_call_ = false;  // nothing but held text since the last call
  std::string held_;
  std::string partial_;
  std::string raw_;
  CallReader reader_;
  bool started_ = false;  // the call was reported
  size_t sent_ = 0;       // bytes of its arguments that were sent
  int index_ = 0;
};

class NoToolParser : public ToolParser {
 public:
  std::string_view opening_tag() const override { return ""; }
  void Push(std::string_view text, AnswerWriter& out) override { out.Content(text); }
  void Finish(AnswerWriter&) override {}
};

}  // namespace

std::unique_ptr<ToolParser> MakeHermesParser(bool whole_tool_calls) {
  return std::make_unique<HermesParser>(whole_tool_calls);
}

std::unique_ptr<ToolParser> MakeNoToolParser() { return std::make_unique<NoToolParser>(); }

}  // namespace nibble::text
