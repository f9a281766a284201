// Finding tags in text that arrives in pieces.
// Thread-safety: pure functions.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

namespace nibble::text {

constexpr bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// How many bytes at the end of text are the beginning of the tag.
inline size_t PartialTagAtEnd(std::string_view text, std::string_view tag) {
  if (tag.empty()) return 0;
  for (size_t length = std::min(text.size(), tag.size() - 1); length > 0; --length) {
    if (text.ends_with(tag.substr(0, length))) return length;
  }
  return 0;
}

inline size_t PartialTagAtEnd(std::string_view text, std::span<const std::string_view> tags) {
  size_t longest = 0;
  for (const std::string_view tag : tags) longest = std::max(longest, PartialTagAtEnd(text, tag));
  return longest;
}

struct FoundTag {
  size_t at = std::string_view::npos;
  size_t index = 0;  // in the list of tags
};

// The first tag in text.
inline FoundTag FindFirstTag(std::string_view text, std::span<const std::string_view> tags) {
  FoundTag found;
  for (size_t i = 0; i < tags.size(); ++i) {
    const size_t at = text.find(tags[i]);
    if (at < found.at) found = {at, i};
  }
  return found;
}

// Text is not empty and a tag may still become of it.
inline bool IsPartialTag(std::string_view text, std::string_view tag) {
  return !text.empty() && text.size() < tag.size() && tag.starts_with(text);
}

}  // namespace nibble::text
