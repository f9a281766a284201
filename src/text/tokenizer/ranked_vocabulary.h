// Vocabularies that are byte strings with ranks: tiktoken.model and tekken.json.
//
// There is no list of merges: of all adjacent pairs, the one whose joined bytes have the lowest
// rank is merged. Special tokens lie outside the ranks, behind them (tiktoken.model) or in front
// (tekken.json). The oracles of the tests are the packages `tiktoken` and `mistral-common`.
// Thread-safety: pure functions.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

struct RankedToken {
  std::string bytes;
  int32_t rank;
};

struct RankedVocabulary {
  std::vector<RankedToken> tokens;  // bytes and ranks are unique; all 256 bytes are among them
  int32_t first_id = 0;             // a token's id is first_id + rank
  std::string split_expression;     // in the syntax of Rust's regular expressions
  boost::json::array added_tokens;  // as in tokenizer.json
  std::optional<int32_t> bos;       // stands in front of a text that is not a rendered template
  std::optional<int32_t> eos;
};

// Lines of base64 and rank. The file says nothing of special tokens and of how text is split:
// tokenizer_config.json lists the tokens, and its tokenizer_class names the published code that
// splits. Known is Moonshot's TikTokenTokenizer (Kimi-K2, Kimi-Linear, Moonlight).
Result<RankedVocabulary> ReadTiktokenModel(std::string_view file,
                                           std::string_view tokenizer_config_json);

// Mistral's file. It may hold more ranks than the model has tokens: config.default_vocab_size says
// how many count. Its special tokens have the first ids; files before v11 leave them out.
Result<RankedVocabulary> ReadTekken(std::string_view file);

}  // namespace nibble::text
