#include "text/reasoning_splitter.h"

#include <algorithm>

#include "text/tool_parsers/tags.h"

namespace nibble::text {
ReasoningSplitter::ReasoningSplitter(AnswerStart start, Tags tags)
    : state_(start == AnswerStart::kContent     ? State::kContent
             : start == AnswerStart::kReasoning ? State::kStart
                                                : State::kDetect),
      tags_(tags) {}

void ReasoningSplitter::Push(std::string_view text, ToolParser& content, AnswerWriter& out) {
  if (state_ == State::kContent) {
    content.Push(text, out);
    return;
  }
  pending_ += text;
  while (Advance(content, out)) {
  }
}

bool ReasoningSplitter::Advance(ToolParser& content, AnswerWriter& out) {
  switch (state_) {
    case State::kDetect:
    case State::kStart:
      return AdvanceOpening();
    case State::kFirstText:
      DropNewlines();
      if (pending_.empty()) return false;
      state_ = State::kReasoning;
      return true;
    case State::kReasoning:
      return AdvanceReasoning(out);
    case State::kAfterTag:
      return AdvanceAfterTag();
    case State::kContent:
      content.Push(pending_, out);
      pending_.clear();
      return false;
  }
  return false;
}

bool ReasoningSplitter::AdvanceOpening() {
  const size_t begin = pending_.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return false;
  const std::string_view text = std::string_view(pending_).substr(begin);
  if (text.starts_with(tags_.open)) {
    pending_.erase(0, begin + tags_.open.size());
    state_ = State::kFirstText;
    return true;
  }
  if (tags_.open.starts_with(text)) return false;
  state_ = state_ == State::kDetect ? State::kContent : State::kFirstText;
  return true;
}

bool ReasoningSplitter::AdvanceReasoning(AnswerWriter& out) {
  const size_t close = pending_.find(tags_.close);
  const size_t tool = tags_.tool.empty() ? std::string::npos : pending_.find(tags_.tool);
  const size_t end = std::min(close, tool);
  const auto emit_before = [&](size_t at) {
    const size_t last = at == 0 ? std::string::npos : pending_.find_last_not_of('\n', at - 1);
    const size_t length = last == std::string::npos ? 0 : last + 1;
    out.Reasoning(std::string_view(pending_).substr(0, length));
    return length;
  };
  if (end != std::string::npos) {
    emit_before(end);
    const bool by_tool = tool < close;
    pending_.erase(0, by_tool ? end : end + tags_.close.size());
    state_ = by_tool ? State::kContent : State::kAfterTag;
    return true;
  }
  const size_t partial =
      std::max(PartialTagAtEnd(pending_, tags_.close), PartialTagAtEnd(pending_, tags_.tool));
  pending_.erase(0, emit_before(pending_.size() - partial));
  return false;
}

bool ReasoningSplitter::AdvanceAfterTag() {
  DropNewlines();
  if (pending_.empty()) return false;
  if (pending_.starts_with(tags_.close)) {
    pending_.erase(0, tags_.close.size());
    return true;
  }
  if (tags_.close.starts_with(pending_)) return false;
  state_ = State::kContent;
  return true;
}

void ReasoningSplitter::DropNewlines() {
  pending_.erase(0, std::min(pending_.find_first_not_of('\n'), pending_.size()));
}

void ReasoningSplitter::Finish(ToolParser& content, AnswerWriter& out) {
  const bool reasoning =
      state_ == State::kStart || state_ == State::kFirstText || state_ == State::kReasoning;
  if (reasoning) {
    if (state_ != State::kReasoning) DropNewlines();
    out.Reasoning(pending_);
  } else {
    content.Push(pending_, out);
  }
  pending_.clear();
  content.Finish(out);
}

}  // namespace nibble::text
