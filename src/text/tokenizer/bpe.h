// Byte-pair encoding as in `tokenizers`: the BPE `model` of tokenizer.json; and as in tiktoken,
// where the rank of a pair is that of the token it makes.
//
// A piece starts as one symbol per byte (byte-level) or character; the adjacent pair of lowest rank
// is merged, leftmost first among equals, until no pair has a rank. Short pieces scan for the
// minimum, long ones use a heap and a linked list: O(n log n). Whether a vocabulary entry is what
// its own bytes encode to is found out once and remembered, so that most pieces cost one look-up.
// Thread-safety: const methods may be called from any thread, each with its own Scratch.
#pragma once

#include <boost/json.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/tokenizer/ranked_vocabulary.h"
#include "text/tokenizer/token_table.h"

namespace nibble::text {

class Bpe {
 public:
  // Working memory of one call of Encode.
  struct Scratch {
    struct Symbol {
      int32_t id;
      uint32_t rank;  // of the pair that starts here
    };
    std::vector<Symbol> symbols;
    std::vector<uint32_t> previous;
    std::vector<uint32_t> next;
    std::vector<uint64_t> heap;
  };

  // byte_level: pieces are bytes, vocabulary entries are written in the byte alphabet.
  static Result<Bpe> Parse(const boost::json::object& model, bool byte_level);

  static Result<Bpe> FromRanks(const std::vector<RankedToken>& tokens, int32_t first_id);

  // Appends the ids of one piece.
  Status Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  // As written in the file.
  const TokenTable& vocabulary() const { return vocabulary_; }

 private:
  enum WholeWord : uint8_t { kUnknown, kYes, kNo };
  static constexpr uint32_t kNoRank = UINT32_MAX;

  // (left, right) → rank, open-addressed.
  class PairTable {
   public:
    void Reserve(size_t count);
    void Set(int32_t left, int32_t right, uint32_t rank);  // a later rank replaces the earlier
    uint32_t Rank(int32_t left, int32_t right) const;

   private:
    struct Slot {
      uint64_t pair;
      uint32_t rank;
    };
    size_t FindSlot(uint64_t pair) const;
    std::vector<Slot> slots_;
  };

  Status ParseVocabulary(const boost::json::object& model);
  Status ParseMerges(const boost::json::object& model);
  Status AddMerge(uint32_t rank, std::string_view left, std::string_view right);
  void IndexBytes();
  void IndexRanks(const std::vector<RankedToken>& tokens, int32_t first_id);

  Status AppendSymbols(std::string_view piece, std::vector<Scratch::Symbol>* symbols) const;
  bool AppendFallbackBytes(std::string_view character, std::vector<Scratch::Symbol>* symbols) const;
  void MergeShort(std::vector<Scratch::Symbol>* symbols) const;
  void MergeLong(Scratch* scratch) const;
  Status EncodeByMerging(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  TokenTable vocabulary_;
  TokenTable byte_vocabulary_;                    // byte level: the same entries as bytes
  std::array<int32_t, 256> byte_ids_{};           // byte level: the symbol of each byte
  std::array<int32_t, 256> fallback_byte_ids_{};  // <0x00> to <0xFF>
  PairTable pairs_;
  std::vector<int32_t> merged_;  // by rank: the id that the pair becomes
  // By id: is the entry the encoding of its own text? Relaxed: every thread finds the same answer.
  std::unique_ptr<std::atomic<uint8_t>[]> whole_word_;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  std::optional<std::string> unknown_token_;
  int32_t unknown_id_ = TokenTable::kNone;
};

}  // namespace nibble::text
