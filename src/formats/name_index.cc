#include "formats/name_index.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <bit>
#include <random>

#include "base/check.h"

namespace nibble::formats {

void NameIndex::Reset(size_t names) {
  NIBBLE_CHECK(names <= kMaxNames, "{} names", names);
  std::random_device device;
  seed_ = (static_cast<uint64_t>(device()) << 32) | device();
  slots_.assign(std::bit_ceil(2 * names + 1), Slot{0, kFree});
  mask_ = slots_.size() - 1;
}

uint64_t NameIndex::Hash(std::string_view name) const {
  return XXH3_64bits_withSeed(name.data(), name.size(), seed_);
}

void NameIndex::Insert(std::string_view name, size_t position) {
  const uint64_t hash = Hash(name);
  size_t at = hash & mask_;
  while (slots_[at].position != kFree) at = (at + 1) & mask_;
  slots_[at] = {Tag(hash), static_cast<uint32_t>(position)};
}

}  // namespace nibble::formats
