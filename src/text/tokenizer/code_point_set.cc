#include "text/tokenizer/code_point_set.h"

#include <algorithm>

namespace nibble::text {

CodePointSet::CodePointSet(std::vector<CodePointRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const CodePointRange& a, const CodePointRange& b) { return a.first < b.first; });
  for (const CodePointRange& range : ranges) {
    if (!ranges_.empty() && range.first <= ranges_.back().last + 1) {
      ranges_.back().last = std::max(ranges_.back().last, range.last);
    } else {
      ranges_.push_back(range);
    }
  }
}

CodePointSet CodePointSet::Complement() const {
  std::vector<CodePointRange> gaps;
  char32_t next = 0;
  for (const CodePointRange& range : ranges_) {
    if (next < range.first) gaps.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= 0x10FFFF) gaps.push_back({next, 0x10FFFF});
  return CodePointSet(std::move(gaps));
}

CodePointSet CodePointSet::Intersection(const CodePointSet& other) const {
  // Not (not a or not b).
  std::vector<CodePointRange> outside = Complement().ranges_;
  const std::vector<CodePointRange> other_outside = other.Complement().ranges_;
  outside.insert(outside.end(), other_outside.begin(), other_outside.end());
  return CodePointSet(std::move(outside)).Complement();
}

}  // namespace nibble::text
