// Calls whose values stand between tags, without quotes: Qwen3-Coder's and GLM's.
#include <algorithm>
#include <string>
#include <utility>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

// Writes the arguments, an object in the style of json.dumps, parameter by parameter. Declared
// strings go out as they come, other values when they are complete.
class ArgumentsWriter {
 public:
  explicit ArgumentsWriter(ToolSchemas schemas) : schemas_(std::move(schemas)) {}

  void BeginCall(std::string function) {
    function_ = std::move(function);
    is_first_ = true;
  }
  void BeginValue(std::string_view parameter, CallText& text) {
    type_ = schemas_.TypeOf(function_, parameter);
    value_.clear();
    std::string piece = is_first_ ? "{" : ", ";
    is_first_ = false;
    piece += JsonString(parameter) + ": ";
    if (Streams()) piece += '"';
    text.Arguments(piece);
  }
  void Value(std::string_view piece, CallText& text) {
    if (!Streams()) {
      value_ += piece;
      return;
    }
    std::string escaped;
    AppendJsonEscaped(piece, &escaped);
    text.Arguments(escaped);
  }
  void EndValue(CallText& text) {
    text.Arguments(Streams() ? "\"" : schemas_.ToJson(type_, value_));
  }
  void EndCall(CallText& text) {
    text.Arguments(is_first_ ? "{}" : "}");
    text.End();
  }

 private:
  bool Streams() const { return type_ == ToolSchemas::Type::kString; }

  const ToolSchemas schemas_;
  std::string function_;
  bool is_first_ = true;
  ToolSchemas::Type type_ = ToolSchemas::Type::kOther;
  std::string value_;
};

// What the two formats share: a name, then parameters, each with a key and a value.
class XmlBody : public CallBody {
 public:
  void Begin(size_t tag) override { state_ = tag == 0 ? State::kBegin : State::kName; }

  Step Read(CallText& text) override {
    switch (state_) {
      case State::kBegin:
        return ReadBegin(text);
      case State::kName:
        return ReadName(text);
      case State::kParameters: {
        const Step step = ReadParameters(text);
        return step == Step::kInvalid ? Broken(text) : step;
      }
      case State::kKey: {
        const Step step = ReadKey(text);
        return step == Step::kInvalid ? Broken(text) : step;
      }
      case State::kValueTag: {
        const Step step = ReadValueTag(text);
        return step == Step::kInvalid ? Broken(text) : step;
      }
      case State::kFirstOfValue:
      case State::kValue:
        return ReadValue(text);
    }
    return Step::kInvalid;
  }

  // The closing tags may be missing, a value may not be cut off.
  void Finish(CallText& text) override {
    if (state_ == State::kParameters && TrimmedRestIsEmpty(text)) {
      StartCall(text);
      arguments_.EndCall(text);
    } else if (state_ == State::kValue) {
      arguments_.Value(text.rest(), text);
      text.Take(text.rest().size());
    }
  }

 protected:
  enum class State { kBegin, kName, kParameters, kKey, kValueTag, kFirstOfValue, kValue };

  struct Tags {
    std::string_view key;  // begins a parameter
    std::string_view key_end;
    std::string_view value;  // between key and value; may be empty
    std::string_view value_end;
    std::string_view call_end;
    bool trims_line_ends;  // one on each side of a value
  };

  XmlBody(Tags tags, ToolSchemas schemas) : tags_(tags), arguments_(std::move(schemas)) {}

  virtual Step ReadBegin(CallText& text) = 0;
  virtual Step ReadName(CallText& text) = 0;

  void SetName(std::string_view name) {
    name_ = name;
    state_ = State::kParameters;
  }
  void GoTo(State state) { state_ = state; }
  static bool IsName(std::string_view name) {
    return !name.empty() && name.find_first_of(" \t\r\n<>{}\"") == name.npos;
  }

 private:
  static bool TrimmedRestIsEmpty(const CallText& text) {
    return text.rest().find_first_not_of(" \t\r\n") == std::string_view::npos;
  }

  // A call is one from its first parameter, or its end, on.
  void StartCall(CallText& text) {
    if (text.started()) return;
    text.Start(name_);
    arguments_.BeginCall(name_);
  }

  Step ReadParameters(CallText& text) {
    text.TakeSpace();
    if (text.rest().starts_with(tags_.key)) {
      text.Take(tags_.key.size());
      state_ = State::kKey;
      return Step::kOn;
    }
    // Where the function's own closing tag is missing, the call's ends it.
    if (text.rest().starts_with(tags_.call_end) || text.rest().starts_with(kToolCallEnd)) {
      StartCall(text);
      arguments_.EndCall(text);
      if (text.rest().starts_with(tags_.call_end)) text.Drop(tags_.call_end.size());
      return Step::kDone;
    }
    for (const std::string_view tag : {tags_.key, tags_.call_end, kToolCallEnd}) {
      if (text.rest().empty() || IsPartialTag(text.rest(), tag)) return Step::kMore;
    }
    return Step::kInvalid;
  }

  Step ReadKey(CallText& text) {
    size_t end = 0;
    const Step step = FindHeaderEnd(text.rest(), tags_.key_end, &end);
    if (step != Step::kOn) return step;
    key_ = text.rest().substr(0, end);
    if (key_.empty()) return Step::kInvalid;
    text.Take(end + tags_.key_end.size());
    state_ = State::kValueTag;
    return Step::kOn;
  }

  Step ReadValueTag(CallText& text) {
    if (!tags_.value.empty()) {
      text.TakeSpace();
      if (text.rest().empty() || IsPartialTag(text.rest(), tags_.value)) return Step::kMore;
      if (!text.rest().starts_with(tags_.value)) return Step::kInvalid;
      text.Take(tags_.value.size());
    }
    StartCall(text);
    arguments_.BeginValue(key_, text);
    state_ = State::kFirstOfValue;
    return Step::kOn;
  }

  Step ReadValue(CallText& text) {
    if (state_ == State::kFirstOfValue) {
      if (text.rest().empty()) return Step::kMore;
      if (tags_.trims_line_ends && text.rest()[0] == '\n') text.Take(1);
      state_ = State::kValue;
    }
    const std::string_view rest = text.rest();
    const size_t end = rest.find(tags_.value_end);
    const bool ended = end != rest.npos;
    size_t size = ended ? end : rest.size() - PartialTagAtEnd(rest, tags_.value_end);
    // The line end in front of the tag is not part of the value.
    size_t line_end = 0;
    if (tags_.trims_line_ends && size > 0 && rest[size - 1] == '\n') line_end = 1;
    arguments_.Value(rest.substr(0, size - line_end), text);
    if (!ended) {
      text.Take(size - line_end);
      return Step::kMore;
    }
    text.Take(end + tags_.value_end.size());
    arguments_.EndValue(text);
    state_ = State::kParameters;
    return Step::kOn;
  }

  // The call cannot go on. Reported parameters stand, and what follows is content.
  Step Broken(CallText& text) {
    if (!text.reported()) return Step::kInvalid;
    arguments_.EndCall(text);
    return Step::kDone;
  }

  static constexpr std::string_view kToolCallEnd = "</tool_call>";

  const Tags tags_;
  ArgumentsWriter arguments_;
  State state_ = State::kBegin;
  std::string name_;
  std::string key_;
};

class QwenCoderBody : public XmlBody {
 public:
  explicit QwenCoderBody(ToolSchemas schemas)
      : XmlBody({.key = "<parameter=",
                 .key_end = ">",
                 .value = "",
                 .value_end = "</parameter>",
                 .call_end = "</function>",
                 .trims_line_ends = true},
                std::move(schemas)) {}

 private:
  Step ReadBegin(CallText& text) override {
    constexpr std::string_view kFunctionTag = "<function=";
    text.TakeSpace();
    if (text.rest().empty() || IsPartialTag(text.rest(), kFunctionTag)) return Step::kMore;
    if (!text.rest().starts_with(kFunctionTag)) return Step::kInvalid;
    text.Take(kFunctionTag.size());
    GoTo(State::kName);
    return Step::kOn;
  }

  Step ReadName(CallText& text) override {
    size_t end = 0;
    const Step step = FindHeaderEnd(text.rest(), ">", &end);
    if (step != Step::kOn) return step;
    const std::string name(text.rest().substr(0, end));
    if (!IsName(name)) return Step::kInvalid;
    text.Take(end + 1);
    SetName(name);
    return Step::kOn;
  }
};

class GlmBody : public XmlBody {
 public:
  explicit GlmBody(ToolSchemas schemas)
      : XmlBody({.key = "<arg_key>",
                 .key_end = "</arg_key>",
                 .value = "<arg_value>",
                 .value_end = "</arg_value>",
                 .call_end = "</tool_call>",
                 .trims_line_ends = false},
                std::move(schemas)) {}

 private:
  Step ReadBegin(CallText& text) override {
    text.TakeSpace();
    if (text.rest().empty()) return Step::kMore;
    GoTo(State::kName);
    return Step::kOn;
  }

  // Up to a line end or the next tag.
  Step ReadName(CallText& text) override {
    const std::string_view rest = text.rest();
    const size_t end = rest.find_first_of(" \t\r\n<");
    if (std::min(end, rest.size()) > kMaxHeaderBytes) return Step::kInvalid;
    if (end == rest.npos) return Step::kMore;
    const std::string name(rest.substr(0, end));
    if (!IsName(name)) return Step::kInvalid;
    text.Take(end);
    SetName(name);
    return Step::kOn;
  }
};

}  // namespace

std::unique_ptr<CallBody> MakeQwenCoderBody(ToolSchemas schemas) {
  return std::make_unique<QwenCoderBody>(std::move(schemas));
}

std::unique_ptr<CallBody> MakeGlmBody(ToolSchemas schemas) {
  return std::make_unique<GlmBody>(std::move(schemas));
}

}  // namespace nibble::text
