// Strings with ids, and the way back: the vocabulary of a tokenizer.
//
// All strings lie in one block, and an open-addressed table points into it. A look-up compares a
// hash tag before it touches the string: two cache misses for a hit, one for most misses. Const
// methods may be called from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

// Arrays are indexed by token id: a stray id of 2^31 must not allocate gigabytes.
inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;

class TokenTable {
 public:
  static constexpr int32_t kNone = -1;

  // Room for `count` strings of `bytes` bytes together.
  void Reserve(size_t count, size_t bytes);

  // The first id given to a string stays. Returns whether it was new. All strings together must
  // be shorter than 4 GiB, ids not negative.
  bool Add(std::string_view text, int32_t id);

  int32_t Find(std::string_view text) const;
  size_t size() const { return size_; }
  size_t longest() const { return longest_; }

  // fn(text, id) in an order that depends on the strings alone.
  template <typename Fn>
  void ForEach(Fn fn) const {
    for (const Slot& slot : slots_) {
      if (slot.id != kNone) fn(Text(slot), slot.id);
    }
  }

 private:
  struct Slot {
    uint32_t tag;
    int32_t id;  // kNone: the slot is empty
    uint32_t begin;
    uint32_t size;
  };

  std::string_view Text(const Slot& slot) const { return {bytes_.data() + slot.begin, slot.size}; }
  size_t FindSlot(std::string_view text, uint64_t hash) const;
  void Rehash(size_t slots);

  std::string bytes_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t size_ = 0;
  size_t longest_ = 0;
};

}  // namespace nibble::text
