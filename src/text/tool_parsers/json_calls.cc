#include <string>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/json_call.h"
#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

class JsonCallsBody : public CallBody {
 public:
  explicit JsonCallsBody(std::string_view separator) : separator_(separator) {}

  void Begin(size_t) override { state_ = State::kBegin; }

  Step Read(CallText& text) override {
    switch (state_) {
      case State::kBegin:
        return ReadBegin(text);
      case State::kItem:
        return ReadItem(text);
      case State::kObject:
        return ReadObject(text);
      case State::kAfterItem:
        return ReadAfterItem(text);
    }
    return Step::kInvalid;
  }

 private:
  enum class State { kBegin, kItem, kObject, kAfterItem };

  Step ReadBegin(CallText& text) {
    text.TakeSpace();
    if (text.rest().empty()) return Step::kMore;
    is_list_ = text.rest()[0] == '[';
    if (is_list_) text.Take(1);
    state_ = State::kItem;
    return Step::kOn;
  }

  Step ReadItem(CallText& text) {
    text.TakeSpace();
    if (text.rest().empty()) return Step::kMore;
    if (text.rest()[0] != '{') return Step::kInvalid;
    call_ = JsonCall();
    sent_ = 0;
    state_ = State::kObject;
    return Step::kOn;
  }

  Step ReadObject(CallText& text) {
    JsonCall::Step step = JsonCall::Step::kMore;
    size_t taken = 0;
    for (const char c : text.rest()) {
      step = call_.Push(c);
      if (step != JsonCall::Step::kInvalid) ++taken;
      if (step != JsonCall::Step::kMore) break;
    }
    text.Take(taken);
    if (call_.can_stream()) Report(text, call_.arguments());
    if (step == JsonCall::Step::kMore) return Step::kMore;
    if (step == JsonCall::Step::kInvalid) {
      // What follows complete arguments may be broken: they were reported and stand.
      if (!text.reported() || !call_.arguments_complete()) return Step::kInvalid;
      text.End();
      return Step::kDone;
    }
    Report(text, call_.FinalArguments());
    text.End();
    state_ = State::kAfterItem;
    return Step::kOn;
  }

  void Report(CallText& text, std::string_view arguments) {
    if (!text.started()) text.Start(*call_.name());
    text.Arguments(arguments.substr(sent_));
    sent_ = arguments.size();
  }

  Step ReadAfterItem(CallText& text) {
    if (!is_list_ && separator_.empty()) return Step::kDone;
    text.DropSpace();
    if (text.rest().empty()) return Step::kMore;
    if (text.rest().starts_with(is_list_ ? "," : separator_)) {
      text.Drop(1);
      state_ = State::kItem;
      return Step::kOn;
    }
    if (!is_list_) return Step::kDone;
    if (text.rest()[0] != ']') return Step::kInvalid;
    text.Drop(1);
    return Step::kDone;
  }

  const std::string_view separator_;
  State state_ = State::kBegin;
  bool is_list_ = false;
  JsonCall call_;
  size_t sent_ = 0;  // bytes of the arguments
};

}  // namespace

std::unique_ptr<CallBody> MakeJsonCallsBody(std::string_view separator) {
  return std::make_unique<JsonCallsBody>(separator);
}

}  // namespace nibble::text
