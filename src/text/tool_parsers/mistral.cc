#include <algorithm>
#include <string>
#include <utility>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/tags.h"

namespace nibble::text {
namespace {

// One of Mistral's two shapes, by the first character.
class MistralBody : public CallBody {
 public:
  void Begin(size_t) override {
    state_ = State::kBegin;
    arguments_ = JsonArguments();
    id_.clear();
  }

  Step Read(CallText& text) override {
    switch (state_) {
      case State::kBegin:
        text.TakeSpace();
        if (text.rest().empty()) return Step::kMore;
        state_ = text.rest()[0] == '[' || text.rest()[0] == '{' ? State::kJson : State::kName;
        json_->Begin(0);
        return Step::kOn;
      case State::kJson:
        return json_->Read(text);
      case State::kName:
        return ReadName(text);
      case State::kId:
        return ReadId(text);
      case State::kArguments: {
        const Step step = arguments_.Read(text, kCallsTag);
        if (step == Step::kDone) text.End();
        return step;
      }
    }
    return Step::kInvalid;
  }

 private:
  enum class State { kBegin, kJson, kName, kId, kArguments };
  static constexpr std::string_view kCallsTag = "[TOOL_CALLS]";
  static constexpr std::string_view kIdTag = "[CALL_ID]";
  static constexpr std::string_view kArgumentsTag = "[ARGS]";

  Step ReadName(CallText& text) {
    const std::string_view rest = text.rest();
    const size_t end = rest.find_first_of("[{ \t\r\n");
    if (std::min(end, rest.size()) > kMaxHeaderBytes) return Step::kInvalid;
    if (end == rest.npos) return Step::kMore;
    const std::string_view behind = rest.substr(end);
    if (end == 0) return Step::kInvalid;
    if (IsPartialTag(behind, kIdTag) || IsPartialTag(behind, kArgumentsTag)) return Step::kMore;
    name_ = rest.substr(0, end);
    if (behind.starts_with(kIdTag)) {
      text.Take(end + kIdTag.size());
      state_ = State::kId;
      return Step::kOn;
    }
    const bool has_tag = behind.starts_with(kArgumentsTag);
    if (!has_tag && behind[0] != '{') return Step::kInvalid;
    text.Take(end + (has_tag ? kArgumentsTag.size() : 0));
    text.Start(std::move(name_));
    state_ = State::kArguments;
    return Step::kOn;
  }

  Step ReadId(CallText& text) {
    const std::string_view rest = text.rest();
    size_t end = 0;
    if (const Step step = FindHeaderEnd(rest, kArgumentsTag, &end); step != Step::kOn) return step;
    id_ = rest.substr(0, end);
    text.Take(end + kArgumentsTag.size());
    text.Start(std::move(name_), std::move(id_));
    state_ = State::kArguments;
    return Step::kOn;
  }

  State state_ = State::kBegin;
  const std::unique_ptr<CallBody> json_ = MakeJsonCallsBody();
  JsonArguments arguments_;
  std::string name_;
  std::string id_;
};

}  // namespace

std::unique_ptr<CallBody> MakeMistralBody() { return std::make_unique<MistralBody>(); }

}  // namespace nibble::text
