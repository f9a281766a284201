// The `normalizer` of tokenizer.json: text in, text out, before the pre-tokenizer sees it.
//
// Supported: NFC, NFKC, Sequence, Replace, Prepend, Strip, Lowercase. Immutable after Parse.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "text/tokenizer/pattern.h"
#include "text/unicode/normalize.h"

namespace nibble::text {

// A text on its way through the normalizer.
struct NormalizedText {
  std::string text;
  // One byte per byte of text, not 0 where it came from an untrusted range; empty when nobody asks.
  std::vector<uint8_t> untrusted;
  // The first character stands for the first of the input: false once a prefix was removed.
  bool starts_at_origin = true;
};

class Normalizer {
 public:
  static Result<Normalizer> Parse(const boost::json::value& spec);

  bool IsIdentity() const { return steps_.empty(); }
  Status Apply(NormalizedText* text) const;

 private:
  struct Unicode {
    NormalizationForm form;
  };
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Prepend {
    std::string content;
  };
  struct Strip {
    bool left;
    bool right;
  };
  struct Lowercase {};
  using Step = std::variant<Unicode, Replace, Prepend, Strip, Lowercase>;

  static Status ParseInto(const boost::json::value& spec, int depth, std::vector<Step>* steps);
  static Status Run(const Unicode& step, NormalizedText* text);
  static Status Run(const Replace& step, NormalizedText* text);
  static Status Run(const Prepend& step, NormalizedText* text);
  static Status Run(const Strip& step, NormalizedText* text);
  static Status Run(const Lowercase& step, NormalizedText* text);

  std::vector<Step> steps_;
};

}  // namespace nibble::text
