// A set of code points with the set algebra that character classes need.
#pragma once

#include <vector>

#include "text/unicode/unicode.h"

namespace nibble::text {

class CodePointSet {
 public:
  CodePointSet() = default;
  explicit CodePointSet(std::vector<CodePointRange> ranges);  // any order, may overlap

  CodePointSet Complement() const;
  CodePointSet Intersection(const CodePointSet& other) const;

  // Sorted, disjoint, not adjacent.
  const std::vector<CodePointRange>& ranges() const { return ranges_; }

 private:
  std::vector<CodePointRange> ranges_;
};

}  // namespace nibble::text
