// Strings with ids, and the way back: the vocabulary of a tokenizer.
//
// All strings lie in one block; look-up is one probe sequence in an open-addressed table that
// compares a hash tag before it touches the string. Const methods may be called from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

class TokenTable {
 public:
  static constexpr int32_t kNone = -1;

  // Room for `count` strings of `bytes` bytes together.
  void Reserve(size_t count, size_t bytes);

  // The first id given to a string stays. Returns whether it was new.
  bool Add(std::string_view text, int32_t id);

  int32_t Find(std::string_view text) const;
  size_t size() const { return entries_.size(); }
  size_t longest() const { return longest_; }

  // fn(text, id) in the order of Add.
  template <typename Fn>
  void ForEach(Fn fn) const {
    for (const Entry& entry : entries_) fn(Text(entry), entry.id);
  }

 private:
  struct Entry {
    size_t begin;
    uint32_t size;
    int32_t id;
  };
  struct Slot {
    uint32_t tag;
    int32_t entry;  // -1: empty
  };

  std::string_view Text(const Entry& entry) const {
    return std::string_view(bytes_).substr(entry.begin, entry.size);
  }
  size_t FindSlot(std::string_view text, uint64_t hash) const;
  void Rehash(size_t slots);

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t longest_ = 0;
};

}  // namespace nibble::text
