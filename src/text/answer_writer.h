// Collects the events of one Push: consecutive pieces of one kind become one event.
// Thread-safety: none; belongs to its parser.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/answer_parser.h"

namespace nibble::text {

class AnswerWriter {
 public:
  void Content(std::string_view text) { Append(AnswerEvent::Kind::kContent, text, 0); }
  void Reasoning(std::string_view text) { Append(AnswerEvent::Kind::kReasoning, text, 0); }
  void StartToolCall(int index, std::string name, std::string id = {}) {
    events_.push_back({AnswerEvent::Kind::kToolCallStart, std::move(name), index, std::move(id)});
  }
  void ToolCallArguments(int index, std::string_view text) {
    Append(AnswerEvent::Kind::kToolCallArguments, text, index);
  }

  std::vector<AnswerEvent> Take() { return std::exchange(events_, {}); }

 private:
  void Append(AnswerEvent::Kind kind, std::string_view text, int index) {
    if (text.empty()) return;
    if (!events_.empty() && events_.back().kind == kind && events_.back().index == index) {
      events_.back().text += text;
    } else {
      events_.push_back({kind, std::string(text), index, {}});
    }
  }

  std::vector<AnswerEvent> events_;
};

}  // namespace nibble::text
