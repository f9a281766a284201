// From token ids to text that may be shown: incremental decoding and stop strings.
//
// Invariants: text handed out is whole code points, and never part of a stop string that ended or
// may still end the answer (unless the request wants it). What was held back comes out when the
// answer ends otherwise. Thread-safety: one owner.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace nibble::engine {

// Finds the first stop string to be completed in a stream of text pieces. When two are completed by
// the same byte, the longer one counts.
class StopMatcher {
 public:
  // `stops` outlives the matcher; none of them is empty.
  StopMatcher(std::span<const std::string> stops, bool include_stop_string)
      : stops_(stops), include_(include_stop_string) {}

  // Adds text; with may_stop false a stop string completed by it is plain text. False: a stop
  // string is complete, and the text ends before it (or with it). Nothing may be added after that.
  bool Append(std::string_view piece, bool may_stop);

  // Text that no stop string can contain any more. After a stop: all that is left.
  std::string TakeCertain();
  // Everything, when the answer ends without a stop string.
  std::string TakeAll();

  const std::string& stop_string() const { return stop_string_; }  // "" if none ended it

 private:
  size_t PossibleStop() const;

  std::span<const std::string> stops_;
  bool include_;
  std::string text_;  // not yet handed out
  std::string stop_string_;
};

// The text of one choice. Without a tokenizer there is none.
class TextStream {
 public:
  // `stops` outlives the stream.
  TextStream(const text::Tokenizer* tokenizer, std::span<const std::string> stops,
             bool include_stop_string, bool skip_special_tokens);

  // False: a stop string is complete.
  bool Push(int32_t token, bool may_stop);
  // Decodes what the detokenizer held back. False: that completed a stop string.
  bool Finish(bool may_stop);

  std::string TakeCertain() { return matcher_.TakeCertain(); }
  std::string TakeAll() { return matcher_.TakeAll(); }
  const std::string& stop_string() const { return matcher_.stop_string(); }

 private:
  std::optional<text::Detokenizer> detokenizer_;
  StopMatcher matcher_;
};

}  // namespace nibble::engine
