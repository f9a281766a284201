// Python's string methods on marked strings, shared by methods and filters. Positions are bytes.
// Results carry marks and the Markup flag of their input.
#pragma once

#include <string>
#include <vector>

#include "text/jinja/marked_string.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

enum class Side { kBoth, kLeft, kRight };

// chars null: white space.
StringPtr Strip(const MarkedString& text, const MarkedString* chars, Side side);
// str.lower of the code point at `at`, which depends on its neighbours for a capital sigma.
std::string LowerAt(const MarkedString& text, size_t at);
StringPtr Upper(const MarkedString& text);
StringPtr Lower(const MarkedString& text);
StringPtr Capitalize(const MarkedString& text);
Result<Value> Replace(Runtime& runtime, const MarkedString& text, const MarkedString& old,
                      const MarkedString& with, Integer count);

struct SplitAt {
  size_t begin;
  size_t end;
};
// The pieces of split, rsplit and splitlines. separator null: runs of white space.
std::vector<SplitAt> Split(const MarkedString& text, const MarkedString* separator, Integer most);
std::vector<SplitAt> SplitFromRight(const MarkedString& text, const MarkedString* separator,
                                    Integer most);
std::vector<SplitAt> SplitLines(const MarkedString& text, bool keep_ends);
Result<Value> MakePieces(Runtime& runtime, const MarkedString& text,
                         const std::vector<SplitAt>& pieces);

// Pads to `width` code points; `fill` is one code point.
Result<Value> Pad(Runtime& runtime, const MarkedString& text, Integer width,
                  const MarkedString& fill, bool left, bool right);

// separator.join(items), items turned to text with str() when `convert`.
Result<Value> Join(Runtime& runtime, const MarkedString& separator, const Values& items,
                   bool convert);

}  // namespace nibble::text::jinja
