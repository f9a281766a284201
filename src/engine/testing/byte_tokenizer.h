// The byte-level tokenizer without merges, with kEos as the special token "<eos>". For tests.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <string>

#include "text/byte_tokenizer.h"
#include "text/tokenizer.h"

namespace nibble::engine {

constexpr int32_t kEos = 256;
constexpr int32_t kByteVocab = 257;

inline std::shared_ptr<const text::Tokenizer> MakeByteTokenizer() {
  boost::json::object file = boost::json::parse(text::ByteTokenizerJson()).as_object();
  file["added_tokens"] = {{{"id", kEos},
                           {"content", "<eos>"},
                           {"single_word", false},
                           {"lstrip", false},
                           {"rstrip", false},
                           {"normalized", false},
                           {"special", true}}};
  auto tokenizer = text::Tokenizer::Load({.tokenizer_json = boost::json::serialize(file)});
  NIBBLE_CHECK(tokenizer, "{}", tokenizer.error().message());
  return std::make_shared<const text::Tokenizer>(std::move(*tokenizer));
}

}  // namespace nibble::engine
