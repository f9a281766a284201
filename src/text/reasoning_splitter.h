// Splits <think>...</think>, or what a family writes instead, off an answer. Families differ in the
// tags and in what else may end the reasoning.
//
// The opening tag is optional where the answer starts in reasoning: the template may have written
// it. Newlines next to the tags are dropped, and closing tags that follow the first one at once. An
// answer that never closes its reasoning is reasoning to its end. Thread-safety: one stream.
#pragma once

#include <string>
#include <string_view>

#include "text/answer_parser.h"
#include "text/answer_splitter.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {

class ReasoningSplitter : public AnswerSplitter {
 public:
  struct Tags {
    std::string_view open;
    std::string_view close;
    std::string_view tool;  // ends the reasoning too, and is content; may be empty
  };
  ReasoningSplitter(AnswerStart start, Tags tags);

  void Push(std::string_view text, ToolParser& content, AnswerWriter& out) override;
  void Finish(ToolParser& content, AnswerWriter& out) override;

 private:
  enum class State {
    kDetect,     // reasoning only if the opening tag comes first
    kStart,      // reasoning, the opening tag may come
    kFirstText,  // reasoning, newlines are dropped
    kReasoning,
    kAfterTag,  // content, newlines and further closing tags are dropped
    kContent,
  };

  // One step over pending_; false when more text is needed.
  bool Advance(ToolParser& content, AnswerWriter& out);
  bool AdvanceOpening();
  bool AdvanceReasoning(AnswerWriter& out);
  bool AdvanceAfterTag();
  void DropNewlines();

  State state_;
  const Tags tags_;
  std::string pending_;
};

}  // namespace nibble::text
