#include "text/unicode/unicode.h"

#include <algorithm>
#include <map>

#include "text/unicode/tables.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace internal {

TwoLevelTable::TwoLevelTable(const uint32_t* runs, size_t count) {
  std::map<std::string, uint16_t> block_numbers;
  std::string block(256, '\0');
  size_t run = 0;
  for (uint32_t high = 0; high < block_of_.size(); ++high) {
    const uint32_t next_block = (high + 1) << 8;
    for (uint32_t c = high << 8; c < next_block;) {
      while (run + 1 < count && (runs[run + 1] >> 8) <= c) ++run;
      const uint32_t run_end = run + 1 < count ? runs[run + 1] >> 8 : next_block;
      const uint32_t end = std::min(run_end, next_block);
      std::fill(block.begin() + (c & 0xFF), block.begin() + (c & 0xFF) + (end - c),
                static_cast<char>(runs[run] & 0xFF));
      c = end;
    }
    const auto number = static_cast<uint16_t>(block_numbers.size());
    const auto [it, is_new] = block_numbers.try_emplace(block, number);
    if (is_new) values_.insert(values_.end(), block.begin(), block.end());
    block_of_[high] = it->second;
  }
}

const TwoLevelTable& Categories() {
  static const TwoLevelTable table(tables::kCategoryRuns, tables::kCategoryRunsCount);
  return table;
}

const TwoLevelTable& Properties() {
  static const TwoLevelTable table(tables::kPropertyRuns, tables::kPropertyRunsCount);
  return table;
}

}  // namespace internal

void AppendLowerCase(char32_t c, std::string* out) {
  if (c == 0x130) {  // the only one-to-many mapping
    out->append("i\xCC\x87");
    return;
  }
  const tables::LowerRun* end = tables::kLowerRuns + tables::kLowerRunsCount;
  const tables::LowerRun* run =
      std::lower_bound(tables::kLowerRuns, end, c,
                       [](const tables::LowerRun& r, char32_t wanted) { return r.last < wanted; });
  const bool mapped = run != end && run->first <= c && (c - run->first) % run->step == 0;
  AppendUtf8(mapped ? static_cast<char32_t>(static_cast<int32_t>(c) + run->shift) : c, out);
}

namespace {

template <typename Predicate>
std::vector<CodePointRange> CollectRanges(const uint32_t* runs, size_t count, Predicate wanted) {
  std::vector<CodePointRange> ranges;
  for (size_t i = 0; i < count; ++i) {
    if (!wanted(runs[i] & 0xFF)) continue;
    const char32_t first = runs[i] >> 8;
    const char32_t last = (i + 1 < count ? runs[i + 1] >> 8 : 0x110000) - 1;
    if (!ranges.empty() && ranges.back().last + 1 == first) {
      ranges.back().last = last;
    } else {
      ranges.push_back({first, last});
    }
  }
  return ranges;
}

}  // namespace

std::vector<CodePointRange> RangesOf(CategorySet categories) {
  return CollectRanges(tables::kCategoryRuns, tables::kCategoryRunsCount,
                       [&](uint32_t value) { return (categories >> value) & 1; });
}

std::vector<CodePointRange> RangesOf(Property property) {
  return CollectRanges(tables::kPropertyRuns, tables::kPropertyRunsCount,
                       [&](uint32_t value) { return (value & property) != 0; });
}

}  // namespace nibble::text
