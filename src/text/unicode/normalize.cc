#include "text/unicode/normalize.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

// The normal form by utf8proc; the text itself in the case that utf8proc reports an error, which
// for valid UTF-8 is want of memory only.
std::string NormalForm(std::string_view text, NormalizationForm form) {
  auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (form == NormalizationForm::kNfkc) {
    options = static_cast<utf8proc_option_t>(options | UTF8PROC_COMPAT);
  }
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (size < 0) return std::string(text);
  return std::string(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
}

}  // namespace

std::vector<NormalizedStretch> FindUnnormalized(std::string_view text, NormalizationForm form) {
  // A character that is not active never changes and never joins what precedes it: the text may be
  // cut before it. A stretch is one such character and the active ones that follow it.
  const uint8_t active = form == NormalizationForm::kNfc ? kNfcActive : kNfkcActive;
  const PropertyTable properties;
  const char* const end = text.data() + text.size();
  std::vector<NormalizedStretch> stretches;
  const char* previous = nullptr;  // the inactive character before p, if it may take part
  for (const char* p = text.data(); p < end;) {
    const char* start = p;
    const char32_t c = NextCodePoint(p);
    if (c < 0x80) {  // inactive in both forms
      previous = start;
      continue;
    }
    if (!properties.Has(c, active)) {
      previous = properties.Has(c, kNewerThanOracle) ? nullptr : start;
      continue;
    }
    if (previous != nullptr) start = previous;
    while (p < end) {
      const char* next = p;
      if (!properties.Has(NextCodePoint(next), active)) break;
      p = next;
    }
    const std::string_view stretch(start, static_cast<size_t>(p - start));
    std::string replacement = NormalForm(stretch, form);
    if (replacement != stretch) {
      const auto begin = static_cast<size_t>(start - text.data());
      stretches.push_back({begin, begin + stretch.size(), std::move(replacement)});
    }
    previous = nullptr;
  }
  return stretches;
}

}  // namespace nibble::text
