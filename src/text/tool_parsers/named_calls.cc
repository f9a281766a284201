// Calls that are a name between tags and a JSON object: Kimi's and DeepSeek's.
#include <algorithm>
#include <string>
#include <utility>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

std::string_view Trim(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

bool IsFunctionName(std::string_view text) {
  return !text.empty() && text.find_first_of(" \t\r\n<") == text.npos;
}

// Takes the tag that must be at the front, behind white space.
CallBody::Step TakeTag(CallText& text, std::string_view tag) {
  text.TakeSpace();
  if (text.rest().starts_with(tag)) {
    text.Take(tag.size());
    return CallBody::Step::kOn;
  }
  const bool may_come = text.rest().empty() || IsPartialTag(text.rest(), tag);
  return may_come ? CallBody::Step::kMore : CallBody::Step::kInvalid;
}

class KimiBody : public CallBody {
 public:
  void Begin(size_t tag) override {
    state_ = tag == 0 ? State::kSection : State::kId;
    arguments_ = JsonArguments();
  }

  Step Read(CallText& text) override {
    if (state_ == State::kSection) {
      const Step step = TakeTag(text, "<|tool_call_begin|>");
      if (step == Step::kOn) state_ = State::kId;
      return step;
    }
    if (state_ == State::kId) return ReadId(text);
    const Step step = arguments_.Read(text, "<|tool_call_end|>");
    if (step == Step::kDone) text.End();
    return step;
  }

 private:
  enum class State { kSection, kId, kArguments };

  // functions.NAME:INDEX
  Step ReadId(CallText& text) {
    constexpr std::string_view kArgumentsTag = "<|tool_call_argument_begin|>";
    size_t end = 0;
    const Step step = FindHeaderEnd(text.rest(), kArgumentsTag, &end);
    if (step != Step::kOn) return step;
    const std::string id(Trim(text.rest().substr(0, end)));
    std::string_view name = id;
    constexpr std::string_view kFunctions = "functions.";
    if (name.starts_with(kFunctions)) name.remove_prefix(kFunctions.size());
    name = name.substr(0, name.rfind(':'));
    if (!IsFunctionName(name)) return Step::kInvalid;
    text.Take(end + kArgumentsTag.size());
    text.Start(std::string(name), id);
    state_ = State::kArguments;
    return Step::kOn;
  }

  State state_ = State::kSection;
  JsonArguments arguments_;
};

class DeepSeekBody : public CallBody {
 public:
  void Begin(size_t tag) override {
    state_ = tag == 0 ? State::kSection : State::kHeader;
    arguments_ = JsonArguments();
  }

  Step Read(CallText& text) override {
    switch (state_) {
      case State::kSection: {
        const Step step = TakeTag(text, "<｜tool▁call▁begin｜>");
        if (step == Step::kOn) state_ = State::kHeader;
        return step;
      }
      case State::kHeader:
        return ReadHeader(text);
      case State::kShape:
        return ReadShape(text);
      case State::kName:
        return ReadName(text);
      case State::kFence:
        return ReadFence(text);
      case State::kArguments: {
        const Step step = arguments_.Read(text, is_fenced_ ? kFence : kEndTag);
        if (step != Step::kDone) return step;
        text.End();
        state_ = State::kClosingFence;
        return Step::kOn;
      }
      case State::kClosingFence:
        return ReadClosingFence(text);
    }
    return Step::kInvalid;
  }

 private:
  enum class State { kSection, kHeader, kShape, kName, kFence, kArguments, kClosingFence };
  static constexpr std::string_view kFence = "```";
  static constexpr std::string_view kJsonFence = "```json";
  static constexpr std::string_view kEndTag = "<｜tool▁call▁end｜>";

  Step ReadHeader(CallText& text) {
    constexpr std::string_view kSeparator = "<｜tool▁sep｜>";
    size_t end = 0;
    const Step step = FindHeaderEnd(text.rest(), kSeparator, &end);
    if (step != Step::kOn) return step;
    header_ = Trim(text.rest().substr(0, end));
    text.Take(end + kSeparator.size());
    state_ = State::kShape;
    return Step::kOn;
  }

  // V3.1 has the arguments here and the name before, V3 the type before and the name here.
  Step ReadShape(CallText& text) {
    text.TakeSpace();
    if (text.rest().empty() || IsPartialTag(text.rest(), kEndTag)) return Step::kMore;
    is_fenced_ = text.rest()[0] != '{' && !text.rest().starts_with(kEndTag);
    if (is_fenced_) {
      state_ = State::kName;
      return Step::kOn;
    }
    return StartCall(text, header_);
  }

  Step ReadName(CallText& text) {
    size_t end = 0;
    const Step step = FindHeaderEnd(text.rest(), "\n", &end);
    if (step != Step::kOn) return step;
    header_ = Trim(text.rest().substr(0, end));
    text.Take(end + 1);
    state_ = State::kFence;
    return Step::kOn;
  }

  Step ReadFence(CallText& text) {
    const Step step = TakeTag(text, kJsonFence);
    return step == Step::kOn ? StartCall(text, header_) : step;
  }

  Step StartCall(CallText& text, std::string name) {
    if (!IsFunctionName(name)) return Step::kInvalid;
    text.Start(std::move(name));
    state_ = State::kArguments;
    return Step::kOn;
  }

  Step ReadClosingFence(CallText& text) {
    if (!is_fenced_) return Step::kDone;
    text.DropSpace();
    if (text.rest().empty() || IsPartialTag(text.rest(), kFence)) return Step::kMore;
    if (text.rest().starts_with(kFence)) text.Drop(kFence.size());
    return Step::kDone;
  }

  State state_ = State::kSection;
  bool is_fenced_ = false;
  std::string header_;
  JsonArguments arguments_;
};

}  // namespace

std::unique_ptr<CallBody> MakeKimiBody() { return std::make_unique<KimiBody>(); }

std::unique_ptr<CallBody> MakeDeepSeekBody() { return std::make_unique<DeepSeekBody>(); }

CallBody::Step FindHeaderEnd(std::string_view rest, std::string_view tag, size_t* at) {
  *at = rest.find(tag);
  if (*at <= kMaxHeaderBytes) return CallBody::Step::kOn;
  const bool may_come = *at == rest.npos && rest.size() < kMaxHeaderBytes + tag.size();
  return may_come ? CallBody::Step::kMore : CallBody::Step::kInvalid;
}

CallBody::Step JsonArguments::Read(CallText& text, std::string_view end_tag) {
  if (!begun_) {
    text.TakeSpace();
    const std::string_view rest = text.rest();
    if (rest.empty() || IsPartialTag(rest, end_tag)) return CallBody::Step::kMore;
    if (rest.starts_with(end_tag)) {
      text.Arguments("{}");
      return CallBody::Step::kDone;
    }
    if (rest[0] != '{') return CallBody::Step::kInvalid;
    begun_ = true;
  }
  JsonScanner::Step step = JsonScanner::Step::kMore;
  size_t taken = 0;
  for (const char c : text.rest()) {
    step = scanner_.Push(c);
    if (step == JsonScanner::Step::kInvalid) break;
    ++taken;
    if (step == JsonScanner::Step::kDone) break;
  }
  const std::string piece(text.rest().substr(0, taken));
  text.Take(taken);
  text.Arguments(piece);
  if (step == JsonScanner::Step::kDone) return CallBody::Step::kDone;
  return step == JsonScanner::Step::kInvalid ? CallBody::Step::kInvalid : CallBody::Step::kMore;
}

}  // namespace nibble::text
