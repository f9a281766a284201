// The `added_tokens` of tokenizer.json and the cut of a text at them.
//
// Matches are leftmost, then longest, over all tokens of one set, as in `tokenizers`; the set with
// normalized:false is applied to the raw text, the other one to the normalized pieces in between.
// Tokens marked special do not exist where they would overlap untrusted text. Immutable after
// Parse.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "text/tokenizer/normalizer.h"
#include "text/tokenizer/token_table.h"

namespace nibble::text {

// A part of a text: an added token, or the text between two of them (id is TokenTable::kNone).
struct TextPart {
  size_t begin;
  size_t end;
  int32_t id;
};

// Finds the tokens of one set.
class AddedTokenMatcher {
 public:
  struct Token {
    std::string content;  // what is looked for
    int32_t id;
    bool single_word;
    bool lstrip;
    bool rstrip;
    bool special;
  };

  explicit AddedTokenMatcher(std::vector<Token> tokens);

  bool empty() const { return tokens_.empty(); }
  bool has_special() const { return has_special_; }

  // untrusted: one byte per byte of text, or empty if all of it is trusted.
  std::vector<TextPart> Split(std::string_view text, std::span<const uint8_t> untrusted) const;

 private:
  // Nodes of a byte trie; the edges of a node lie together, sorted by byte.
  struct Node {
    uint32_t first_edge = 0;
    uint32_t edge_count = 0;
    int32_t token = -1;
  };
  struct Edge {
    unsigned char byte;
    uint32_t node;
  };

  void BuildNode(uint32_t node, size_t first, size_t last, size_t depth);
  const Token* LongestAt(std::string_view text, size_t at,
                         std::span<const uint8_t> untrusted) const;

  std::vector<Token> tokens_;  // sorted by content
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::vector<bool> first_bytes_;
  bool has_special_ = false;
};

class AddedTokens {
 public:
  // An added token that is in the model's vocabulary has the id it has there; others have the id
  // the file gives.
  static Result<AddedTokens> Parse(const boost::json::value* spec, const TokenTable& vocabulary,
                                   const Normalizer& normalizer);

  const AddedTokenMatcher& raw() const { return raw_; }
  const AddedTokenMatcher& normalized() const { return normalized_; }

  // Content by id. An id that two tokens claim belongs to the later one.
  const std::unordered_map<int32_t, std::string>& contents() const { return contents_; }
  std::optional<int32_t> Find(std::string_view content) const;
  const std::unordered_set<std::string>& specials() const { return specials_; }

 private:
  AddedTokens(AddedTokenMatcher raw, AddedTokenMatcher normalized)
      : raw_(std::move(raw)), normalized_(std::move(normalized)) {}

  AddedTokenMatcher raw_;
  AddedTokenMatcher normalized_;
  std::unordered_map<int32_t, std::string> contents_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_set<std::string> specials_;
};

}  // namespace nibble::text
