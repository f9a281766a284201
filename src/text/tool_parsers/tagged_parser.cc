#include "text/tool_parsers/tagged_parser.h"

#include <utility>

#include "text/tool_parsers/tags.h"

namespace nibble::text {

TaggedParser::TaggedParser(CallTags tags, std::unique_ptr<CallBody> body, bool whole_calls)
    : tags_(std::move(tags)), body_(std::move(body)), text_(whole_calls) {
  all_tags_ = tags_.close;
  all_tags_.insert(all_tags_.end(), tags_.open.begin(), tags_.open.end());
}

void TaggedParser::Push(std::string_view text, AnswerWriter& out) {
  text_.SetOutput(&out);
  text_.Append(text);
  while (Advance()) {
  }
  text_.Compact();
}

bool TaggedParser::Advance() {
  switch (state_) {
    case State::kText:
      return AdvanceText();
    case State::kBody:
      return AdvanceBody();
    case State::kBroken:
      return AdvanceBroken();
  }
  return false;
}

bool TaggedParser::AdvanceText() {
  if (after_call_) return AdvanceAfterCall();
  const std::string_view rest = text_.rest();
  if (rest.empty()) return false;
  const size_t first = rest.find_first_not_of(" \t\r\n");
  if (!begun_ && first != rest.npos && tags_.bare.find(rest[first]) != tags_.bare.npos) {
    EmitText(rest.substr(0, first));
    BeginBody(tags_.open.size());
    return true;
  }
  const FoundTag found = FindFirstTag(rest, tags_.open);
  if (found.at != rest.npos) {
    EmitText(rest.substr(0, found.at));
    BeginBody(found.index);
    return true;
  }
  EmitText(rest.substr(0, rest.size() - PartialTagAtEnd(rest, tags_.open)));
  return false;
}

// Behind a call: drops white space and closing tags.
bool TaggedParser::AdvanceAfterCall() {
  const std::string_view rest = text_.rest();
  if (rest.empty()) return false;
  if (IsSpace(rest[0]) || tags_.stray.find(rest[0]) != tags_.stray.npos) {
    text_.Drop(1);
    return true;
  }
  for (const std::string_view tag : tags_.close) {
    if (rest.starts_with(tag)) {
      text_.Drop(tag.size());
      return true;
    }
  }
  for (size_t i = 0; i < tags_.open.size(); ++i) {
    if (rest.starts_with(tags_.open[i])) {
      BeginBody(i);
      return true;
    }
  }
  for (const std::string_view tag : all_tags_) {
    if (IsPartialTag(rest, tag)) return false;
  }
  after_call_ = false;
  return true;
}

// Writes text, and holds the white space at its end.
void TaggedParser::EmitText(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\r\n");
  if (last == text.npos) {
    held_ += text;
  } else {
    begun_ = true;
    text_.out().Content(held_);
    text_.out().Content(text.substr(0, last + 1));
    held_ = text.substr(last + 1);
  }
  text_.Drop(text.size());
}

void TaggedParser::BeginBody(size_t tag) {
  text_.BeginWith(std::exchange(held_, {}));
  if (tag < tags_.open.size()) text_.Take(tags_.open[tag].size());
  begun_ = true;
  calls_before_ = text_.calls();
  body_->Begin(tag);
  state_ = State::kBody;
}

bool TaggedParser::AdvanceBody() {
  const CallBody::Step step = body_->Read(text_);
  if (step == CallBody::Step::kOn) return true;
  if (step == CallBody::Step::kMore) return false;
  const bool has_calls = text_.calls() > calls_before_;
  if (step == CallBody::Step::kDone && has_calls) {
    text_.Forget();
    after_call_ = true;
    state_ = State::kText;
  } else if (text_.reported()) {
    state_ = State::kBroken;
  } else {
    text_.GiveUp();
    after_call_ = false;
    state_ = State::kText;
  }
  return true;
}

bool TaggedParser::AdvanceBroken() {
  const std::string_view rest = text_.rest();
  const FoundTag found = FindFirstTag(rest, all_tags_);
  const bool ended = found.at != rest.npos;
  const size_t bytes = ended ? found.at : rest.size() - PartialTagAtEnd(rest, all_tags_);
  broken_ += rest.substr(0, bytes);
  text_.Drop(bytes);
  if (ended) EndBroken();
  return ended;
}

// The rest of the broken arguments, without white space and brace that close the call.
void TaggedParser::EndBroken() {
  const auto strip_space = [&] {
    while (!broken_.empty() && IsSpace(broken_.back())) broken_.pop_back();
  };
  strip_space();
  if (!broken_.empty() && tags_.stray.find(broken_.back()) != tags_.stray.npos) broken_.pop_back();
  strip_space();
  text_.Arguments(broken_);
  text_.End();
  broken_.clear();
  after_call_ = true;
  state_ = State::kText;
}

void TaggedParser::Finish(AnswerWriter& out) {
  text_.SetOutput(&out);
  if (state_ == State::kBody) {
    body_->Finish(text_);
    if (text_.reported()) {
      // Cut off in the middle: the call keeps its arguments so far, without the beginning of a tag.
      text_.Drop(text_.rest().size());
    } else {
      text_.GiveUp();
    }
  } else if (state_ == State::kBroken) {
    broken_ += text_.rest();
    text_.Drop(text_.rest().size());
    EndBroken();
  }
  out.Content(held_);
  out.Content(text_.rest());
}

}  // namespace nibble::text
