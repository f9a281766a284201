// The `pre_tokenizer` of tokenizer.json: cuts normalized text into the pieces that BPE works on.
//
// Supported: Sequence, Split, ByteLevel, Digits, Punctuation, Whitespace, WhitespaceSplit,
// Metaspace. A piece runs through all stages before the next one starts, so nothing is stored.
// A ByteLevel at the end does not rewrite the text into its printable alphabet: is_byte_level()
// tells the model to work on bytes instead. Immutable after Parse.
#pragma once

#include <boost/json.hpp>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  // The piece is not empty and lives only during the call.
  virtual Status Take(std::string_view piece) = 0;
};

class PreTokenizer {
 public:
  static Result<PreTokenizer> Parse(const boost::json::value& spec);
  // tiktoken's way: the matches of one expression are the pieces, in bytes; what lies between them
  // is dropped.
  static Result<PreTokenizer> ForBytes(std::string_view expression);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  bool is_byte_level() const { return is_byte_level_; }

  // `at_origin`: the text starts where the whole input starts (Metaspace's scheme "first").
  Status Run(std::string_view text, bool at_origin, PieceSink* sink) const;

  struct Stage;

 private:
  PreTokenizer();
  std::vector<std::unique_ptr<Stage>> stages_;
  bool is_byte_level_ = false;
};

}  // namespace nibble::text
