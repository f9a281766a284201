// The text of an answer while a tool call is read from it, and what is reported of the call.
//
// Streaming: a call is reported from its name on, and what was reported stays. Whole calls: nothing
// is reported before End. In both modes text that was taken and turns out not to be a call is
// content again: GiveUp. Thread-safety: none; belongs to one parser.
#pragma once

#include <string>
#include <string_view>

#include "text/answer_writer.h"

namespace nibble::text {

class CallText {
 public:
  explicit CallText(bool whole_calls) : whole_(whole_calls) {}

  // ---- The answer's text ----

  void Append(std::string_view text) { text_ += text; }
  void SetOutput(AnswerWriter* out) { out_ = out; }
  AnswerWriter& out() { return *out_; }
  // What was not taken yet.
  std::string_view rest() const { return std::string_view(text_).substr(begin_); }
  // Takes text that is content again if there is no call in the end.
  void Take(size_t bytes);
  // Takes text that is format for certain.
  void Drop(size_t bytes) { begin_ += bytes; }
  void DropSpace();
  void TakeSpace();
  // Frees what was taken; rest() of before is invalid.
  void Compact() {
    text_.erase(0, begin_);
    begin_ = 0;
  }
  // Text in front of the call that belongs to it if it is one.
  void BeginWith(std::string text) { taken_ = std::move(text); }

  // ---- The call ----

  // id: what the model calls it, may be empty.
  void Start(std::string name, std::string id = {});
  void Arguments(std::string_view text);
  void End();

  // Something of a call that has not ended was reported.
  bool reported() const { return reported_; }
  bool started() const { return started_; }
  int calls() const { return index_; }  // that have ended

  // No call, or no further one: what was taken is content.
  void GiveUp();
  // What was taken since the last call is format.
  void Forget() { taken_.clear(); }

 private:
  void Report();

  const bool whole_;
  std::string text_;
  size_t begin_ = 0;
  AnswerWriter* out_ = nullptr;

  std::string taken_;
  bool started_ = false;
  bool reported_ = false;
  std::string name_;
  std::string id_;
  std::string arguments_;  // not reported yet
  int index_ = 0;
};

}  // namespace nibble::text
