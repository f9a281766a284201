// NameIndex: names → positions in a table that is kept elsewhere; the names are not copied.
//
// Open addressing over 8-byte slots. Names come from files that nobody vouches for, so the hash
// (XXH3) is seeded anew for every table: names that were made to collide do not.
// Thread-safety: const methods may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

namespace nibble::formats {

class NameIndex {
 public:
  static constexpr size_t kNone = std::numeric_limits<size_t>::max();
  static constexpr size_t kMaxNames = size_t{1} << 30;

  // An empty index with room for `names` names, at most kMaxNames.
  void Reset(size_t names);
  bool empty() const { return slots_.empty(); }

  // is_name(position): whether the entry at that position has this name. kNone if none does.
  template <typename IsName>
  size_t Find(std::string_view name, const IsName& is_name) const {
    if (slots_.empty()) return kNone;
    const uint64_t hash = Hash(name);
    for (size_t at = hash & mask_; slots_[at].position != kFree; at = (at + 1) & mask_) {
      if (slots_[at].tag == Tag(hash) && is_name(slots_[at].position)) return slots_[at].position;
    }
    return kNone;
  }

  // The name must not be there yet, and Reset must have made room for it.
  void Insert(std::string_view name, size_t position);

 private:
  static constexpr uint32_t kFree = std::numeric_limits<uint32_t>::max();

  struct Slot {
    uint32_t tag;
    uint32_t position;
  };

  uint64_t Hash(std::string_view name) const;
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  std::vector<Slot> slots_;  // a power of two of them, at most half of them taken
  size_t mask_ = 0;
  uint64_t seed_ = 0;
};

}  // namespace nibble::formats
