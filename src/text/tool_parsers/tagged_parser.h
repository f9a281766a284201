// The part that all formats with tags share: content up to an opening tag, a call's body behind it,
// and what may follow a call.
//
// A tag that may still become one is held back, and so is white space in front of it: white space
// that touches a call belongs to the format. Thread-safety: one stream each.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tool_parsers/call_text.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {

// Reads what follows an opening tag: one call, or a list of them.
class CallBody {
 public:
  enum class Step {
    kOn,       // something was taken; there may be more to read
    kMore,     // more text is needed
    kDone,     // the calls are complete
    kInvalid,  // the text does not go on like a call
  };
  virtual ~CallBody() = default;
  // tag: which of CallTags::open was found; their number if the body began without a tag.
  virtual void Begin(size_t tag) = 0;
  // Reads the front of text.rest().
  virtual Step Read(CallText& text) = 0;
  // The answer ends here: ends the call if it lacks nothing but its closing tags.
  virtual void Finish(CallText&) {}
};

struct CallTags {
  std::vector<std::string_view> open;
  std::vector<std::string_view> close;  // dropped behind a call
  // Characters that open a body without a tag, as the first ones of the answer; not taken.
  std::string_view bare = "";
  // Surplus characters that some models write behind a call.
  std::string_view stray = "";
};

class TaggedParser : public ToolParser {
 public:
  TaggedParser(CallTags tags, std::unique_ptr<CallBody> body, bool whole_calls);

  std::string_view opening_tag() const override {
    return tags_.open.empty() ? std::string_view() : tags_.open.front();
  }
  void Push(std::string_view text, AnswerWriter& out) override;
  void Finish(AnswerWriter& out) override;

 private:
  enum class State {
    kText,
    kBody,
    kBroken,  // a call that was reported already cannot go on: all up to a tag is its arguments
  };

  bool Advance();
  bool AdvanceText();
  bool AdvanceAfterCall();
  bool AdvanceBody();
  bool AdvanceBroken();
  void EndBroken();
  void BeginBody(size_t tag);
  void EmitText(std::string_view text);

  const CallTags tags_;
  std::vector<std::string_view> all_tags_;
  const std::unique_ptr<CallBody> body_;
  CallText text_;
  State state_ = State::kText;
  bool begun_ = false;       // the answer has more than white space
  bool after_call_ = false;  // nothing but format since the last call
  int calls_before_ = 0;     // when the body began
  std::string held_;         // white space that may touch a tag
  std::string broken_;
};

}  // namespace nibble::text
