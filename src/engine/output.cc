#include "engine/output.h"

#include <algorithm>
#include <utility>

namespace nibble::engine {

bool StopMatcher::Append(std::string_view piece, bool may_stop) {
  const size_t old_size = text_.size();
  text_ += piece;
  if (!may_stop) return true;
  for (size_t end = old_size + 1; end <= text_.size(); ++end) {
    const std::string_view head = std::string_view(text_).substr(0, end);
    const std::string* longest = nullptr;
    for (const std::string& stop : stops_)
      if (head.ends_with(stop) && (longest == nullptr || stop.size() > longest->size()))
        longest = &stop;
    if (longest == nullptr) continue;
    stop_string_ = *longest;
    text_.resize(include_ ? end : end - longest->size());
    return false;
  }
  return true;
}

// Length of the longest end of the text with which a stop string begins.
size_t StopMatcher::PossibleStop() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, text_.size()); n > longest; --n) {
      if (std::string_view(text_).ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

std::string StopMatcher::TakeCertain() {
  if (!stop_string_.empty()) return TakeAll();
  const size_t certain = text_.size() - PossibleStop();
  std::string taken = text_.substr(0, certain);
  text_.erase(0, certain);
  return taken;
}

std::string StopMatcher::TakeAll() { return std::exchange(text_, {}); }

TextStream::TextStream(const text::Tokenizer* tokenizer, std::span<const std::string> stops,
                       bool include_stop_string, bool skip_special_tokens)
    : matcher_(stops, include_stop_string) {
  if (tokenizer != nullptr) detokenizer_.emplace(*tokenizer, skip_special_tokens);
}

bool TextStream::Push(int32_t token, bool may_stop) {
  return !detokenizer_ || matcher_.Append(detokenizer_->Push(token), may_stop);
}

bool TextStream::Finish(bool may_stop) {
  return !detokenizer_ || matcher_.Append(detokenizer_->Finish(), may_stop);
}

}  // namespace nibble::engine
