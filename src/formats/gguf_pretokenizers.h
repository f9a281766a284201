// The pre-tokenizer of each byte-level BPE family that `tokenizer.ggml.pre` names, as the family's
// published tokenizer.json has it. Thread-safety: pure functions.
#pragma once

#include <boost/json.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace nibble::formats {

struct GgufPreTokenizer {
  boost::json::value pre_tokenizer;
  boost::json::value normalizer;  // null or NFC
  bool ignore_merges = false;     // a pre-token that is in the vocabulary is one token
  bool add_bos = false;           // where the file does not say
};

// nullopt for an unknown name.
std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view pre);
std::string KnownGgufPreTokenizers();  // "bloom, gpt-2, ..."

}  // namespace nibble::formats
