#include "engine/cache/kv_cache.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace nibble::engine {

KvCache::KvCache(int64_t pages, int32_t page_size, bool index_pages, uint64_t hash_seed)
    : page_size_(page_size),
      index_pages_(index_pages),
      hash_seed_(hash_seed),
      available_(pages),
      pages_(static_cast<size_t>(pages)) {
  free_.reserve(pages_.size());
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
  if (!index_pages_) return;
  tokens_.resize(pages_.size() * static_cast<size_t>(page_size));
  buckets_.assign(std::bit_ceil(2 * pages_.size() + 1), kNoPage);
}

int32_t KvCache::Allocate() {
  NIBBLE_CHECK(available_ > 0, "no page left of {}", pages());
  if (free_.empty()) {
    const int32_t victim = oldest_;
    UnlinkEvictable(victim);
    RemoveFromIndex(victim);
    free_.push_back(victim);
  }
  const int32_t page = free_.back();
  free_.pop_back();
  pages_[page].references = 1;
  --available_;
  return page;
}

void KvCache::Reference(int32_t page) {
  Page& entry = pages_[page];
  if (entry.references == 0) {
    NIBBLE_CHECK(entry.indexed, "page {} is free", page);
    UnlinkEvictable(page);
    --available_;
  }
  ++entry.references;
}

void KvCache::Release(int32_t page) {
  Page& entry = pages_[page];
  NIBBLE_CHECK(entry.references > 0, "page {} released twice", page);
  if (--entry.references > 0) return;
  ++available_;
  if (entry.indexed) {
    AppendEvictable(page);
  } else {
    free_.push_back(page);
  }
}

uint64_t KvCache::ChainHash(uint64_t parent_hash, std::span<const int32_t> tokens,
                            std::string_view salt) const {
  uint64_t seed = parent_hash ^ hash_seed_;
  if (!salt.empty()) seed = XXH3_64bits_withSeed(salt.data(), salt.size(), seed);
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed);
}

int32_t KvCache::Find(int32_t parent, uint64_t hash, std::span<const int32_t> wanted,
                      std::string_view salt) const {
  if (!index_pages_) return kNoPage;
  for (int32_t page = buckets_[hash & (buckets_.size() - 1)]; page != kNoPage;
       page = pages_[page].chain) {
    const Page& entry = pages_[page];
    if (entry.hash != hash || entry.parent != parent) continue;
    // Pages after the first inherit the salt: their parent is one page, and that page has one salt.
    if (parent == kNoPage && entry.salt != salt) continue;
    if (std::ranges::equal(tokens(page), wanted)) return page;
  }
  return kNoPage;
}

int32_t KvCache::Insert(int32_t parent, uint64_t hash, std::span<const int32_t> content,
                        std::string_view salt, int32_t page) {
  NIBBLE_CHECK(index_pages_ && content.size() == static_cast<size_t>(page_size_) &&
                   pages_[page].references > 0 && !pages_[page].indexed &&
                   (parent == kNoPage || pages_[parent].indexed),
               "page {} after {} cannot be indexed", page, parent);
  if (const int32_t same = Find(parent, hash, content, salt); same != kNoPage) {
    Reference(same);
    Release(page);
    return same;
  }
  Page& entry = pages_[page];
  entry.indexed = true;
  entry.parent = parent;
  entry.hash = hash;
  if (parent == kNoPage) entry.salt = salt;
  std::ranges::copy(content, tokens_.begin() + static_cast<int64_t>(page) * page_size_);
  entry.chain = bucket(hash);
  bucket(hash) = page;
  return page;
}

void KvCache::AppendEvictable(int32_t page) {
  pages_[page].older = newest_;
  pages_[page].newer = kNoPage;
  (newest_ == kNoPage ? oldest_ : pages_[newest_].newer) = page;
  newest_ = page;
}

void KvCache::UnlinkEvictable(int32_t page) {
  const Page& entry = pages_[page];
  (entry.older == kNoPage ? oldest_ : pages_[entry.older].newer) = entry.newer;
  (entry.newer == kNoPage ? newest_ : pages_[entry.newer].older) = entry.older;
}

void KvCache::RemoveFromIndex(int32_t page) {
  Page& entry = pages_[page];
  int32_t* link = &bucket(entry.hash);
  while (*link != page) link = &pages_[*link].chain;
  *link = entry.chain;
  entry.indexed = false;
  entry.parent = kNoPage;
  entry.salt.clear();
  if (on_forget_) on_forget_(page);
}

std::string KvCache::CheckInvariants() const {
  std::vector<int> seen(pages_.size(), 0);
  for (const int32_t page : free_) {
    ++seen[page];
    if (pages_[page].references != 0 || pages_[page].indexed)
      return fmt::format("PARTITION: page {} is free, but held or indexed", page);
  }
  int64_t evictable = 0;
  std::vector<int64_t> age(pages_.size(), -1);
  for (int32_t page = oldest_; page != kNoPage; page = pages_[page].newer) {
    ++seen[page];
    age[page] = evictable++;
    if (pages_[page].references != 0 || !pages_[page].indexed)
      return fmt::format("PARTITION: page {} is evictable, but held or not indexed", page);
  }
  for (int32_t page = 0; page < pages(); ++page) {
    const Page& entry = pages_[page];
    if (entry.references > 0) ++seen[page];
    if (seen[page] != 1) return fmt::format("PARTITION: page {} is in {} sets", page, seen[page]);
    if (!entry.indexed) continue;
    if (entry.parent != kNoPage) {
      const Page& parent = pages_[entry.parent];
      if (!parent.indexed) return fmt::format("PARENT-STAYS: page {} lost its parent", page);
      if (entry.references > 0 && parent.references == 0)
        return fmt::format("PARENT-STAYS: page {} is held, its parent is not", page);
      if (entry.references == 0 && parent.references == 0 && age[entry.parent] < age[page])
        return fmt::format("PARENT-STAYS: the parent of page {} would be evicted first", page);
    }
    if (Find(entry.parent, entry.hash, tokens(page), entry.salt) != page)
      return fmt::format("ONE-COPY: page {} is hidden by another of equal content", page);
  }
  if (available_ != static_cast<int64_t>(free_.size()) + evictable)
    return fmt::format("PARTITION: {} available, counted {}", available_, free_.size() + evictable);
  return "";
}

}  // namespace nibble::engine
