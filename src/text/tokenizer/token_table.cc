#include "text/tokenizer/token_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace nibble::text {

namespace {

// Multiply-and-fold over eight bytes at a time: short keys cost a few cycles.
uint64_t Fold(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t HashOf(std::string_view text) {
  constexpr uint64_t kOdd1 = 0x9E3779B97F4A7C15ull;
  constexpr uint64_t kOdd2 = 0xD6E8FEB86659FD93ull;
  uint64_t hash = kOdd1 ^ text.size();
  const char* p = text.data();
  size_t left = text.size();
  for (; left >= 8; p += 8, left -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    hash = Fold(hash ^ word, kOdd2);
  }
  uint64_t word = 0;
  if (left >= 4) {
    uint32_t low;
    uint32_t high;  // overlaps `low` unless left is 8
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + left - 4, 4);
    word = static_cast<uint64_t>(high) << 32 | low;
  } else if (left > 0) {
    word = static_cast<uint64_t>(static_cast<unsigned char>(p[0])) << 16 |
           static_cast<uint64_t>(static_cast<unsigned char>(p[left / 2])) << 8 |
           static_cast<unsigned char>(p[left - 1]);
  }
  return Fold(hash ^ word, kOdd1);
}

}  // namespace

void TokenTable::Reserve(size_t count, size_t bytes) {
  bytes_.reserve(bytes);
  if (count * 2 > slots_.size()) Rehash(std::bit_ceil(std::max<size_t>(count * 2, 16)));
}

// The slot that holds the text, or the empty one where it would go.
size_t TokenTable::FindSlot(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.id == kNone || (slot.tag == tag && Text(slot) == text)) return i;
  }
}

bool TokenTable::Add(std::string_view text, int32_t id) {
  if ((size_ + 1) * 2 > slots_.size()) {
    Rehash(std::max<size_t>(16, slots_.size() * 2));
  }
  const uint64_t hash = HashOf(text);
  Slot& slot = slots_[FindSlot(text, hash)];
  if (slot.id != kNone) return false;
  slot = {static_cast<uint32_t>(hash >> 32), id, static_cast<uint32_t>(bytes_.size()),
          static_cast<uint32_t>(text.size())};
  bytes_ += text;
  ++size_;
  longest_ = std::max(longest_, text.size());
  return true;
}

int32_t TokenTable::Find(std::string_view text) const {
  if (slots_.empty() || text.size() > longest_) return kNone;
  return slots_[FindSlot(text, HashOf(text))].id;
}

void TokenTable::Rehash(size_t slots) {
  std::vector<Slot> old(slots, Slot{0, kNone, 0, 0});
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.id != kNone) slots_[FindSlot(Text(slot), HashOf(Text(slot)))] = slot;
  }
}

}  // namespace nibble::text
