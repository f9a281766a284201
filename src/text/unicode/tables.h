// The generated run-length tables behind unicode.h (tools/make_unicode_tables.py writes tables.cc).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::text::tables {

// first code point << 8 | value, sorted; a run ends where the next begins.
extern const uint32_t kCategoryRuns[];
extern const size_t kCategoryRunsCount;
extern const uint32_t kPropertyRuns[];
extern const size_t kPropertyRunsCount;

// Every `step`-th code point of [first, last] has the lower-case form code point + shift.
struct LowerRun {
  uint32_t first;
  uint32_t last;
  uint32_t step;
  int32_t shift;
};
extern const LowerRun kLowerRuns[];
extern const size_t kLowerRunsCount;

}  // namespace nibble::text::tables
