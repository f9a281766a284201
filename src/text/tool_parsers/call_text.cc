#include "text/tool_parsers/call_text.h"

#include <utility>

#include "text/tool_parsers/tags.h"

namespace nibble::text {

void CallText::Take(size_t bytes) {
  if (!reported_) taken_ += rest().substr(0, bytes);
  begin_ += bytes;
}

void CallText::DropSpace() {
  while (begin_ < text_.size() && IsSpace(text_[begin_])) ++begin_;
}

void CallText::TakeSpace() {
  size_t bytes = 0;
  while (bytes < rest().size() && IsSpace(rest()[bytes])) ++bytes;
  Take(bytes);
}

void CallText::Start(std::string name, std::string id) {
  started_ = true;
  name_ = std::move(name);
  id_ = std::move(id);
  arguments_.clear();
  if (!whole_) Report();
}

void CallText::Arguments(std::string_view text) {
  if (reported_) {
    out_->ToolCallArguments(index_, text);
  } else {
    arguments_ += text;
  }
}

void CallText::End() {
  if (!reported_) Report();
  ++index_;
  started_ = reported_ = false;
}

void CallText::Report() {
  out_->StartToolCall(index_, std::move(name_), std::move(id_));
  out_->ToolCallArguments(index_, arguments_);
  arguments_.clear();
  taken_.clear();
  reported_ = true;
}

void CallText::GiveUp() {
  out_->Content(taken_);
  taken_.clear();
  started_ = false;
}

}  // namespace nibble::text
