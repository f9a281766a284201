// KvCache: who holds which page of the KvPool, and which full pages can be found again by content.
//
// It knows numbers of pages, never their bytes. Invariants (asserted by CheckInvariants and by the
// model-checking test under these names):
//   PARTITION      every page is exactly one of: free, held (references > 0), or evictable (no
//                  references, but indexed).
//   FULL-ONLY      an indexed page is full and is never written again.
//   PARENT-STAYS   the page before an indexed page is indexed as well, and is held whenever the
//                  indexed page is. Therefore a page number identifies a whole prefix.
//   ONE-COPY       no two indexed pages have equal content, salt and parent.
//   COMPARED       a hit is confirmed by token ids, parent and salt; hashes only narrow the search.
// Eviction takes the least recently released page; a sequence releases its last page first, so
// children go before parents. Thread-safety: one owner (the engine thread). After construction
// nothing is allocated but salts.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::engine {

class KvCache {
 public:
  static constexpr int32_t kNoPage = -1;

  KvCache(int64_t pages, int32_t page_size, bool index_pages, uint64_t hash_seed);

  int64_t pages() const { return static_cast<int64_t>(pages_.size()); }
  int32_t page_size() const { return page_size_; }
  bool indexes() const { return index_pages_; }
  // Pages that Allocate can give out: free and evictable ones.
  int64_t available() const { return available_; }
  int32_t references(int32_t page) const { return pages_[page].references; }

  // ---- Pages

  // A page with one reference; evicts if it must. Requires available() > 0.
  int32_t Allocate();
  // One more holder of a held or evictable page.
  void Reference(int32_t page);
  // One holder less: free or evictable when it was the last.
  void Release(int32_t page);

  // ---- The index

  // The hash of a full page's content after that of the page before it (0 for the first).
  uint64_t ChainHash(uint64_t parent_hash, std::span<const int32_t> tokens,
                     std::string_view salt) const;

  // The indexed page with this content after `parent` (kNoPage for the first), or kNoPage.
  int32_t Find(int32_t parent, uint64_t hash, std::span<const int32_t> tokens,
               std::string_view salt) const;

  // Indexes a held, full page after `parent`, which must be indexed. If equal content is indexed
  // already, `page` is given up for that one: releases `page`, references and returns the other.
  // The bytes are equal, since a token's k and v depend on its history alone.
  int32_t Insert(int32_t parent, uint64_t hash, std::span<const int32_t> tokens,
                 std::string_view salt, int32_t page);

  bool indexed(int32_t page) const { return pages_[page].indexed; }

  // Called with every page whose content leaves the index.
  void set_on_forget(std::function<void(int32_t)> on_forget) { on_forget_ = std::move(on_forget); }

  // Empty if every invariant holds, else what is broken. For tests: walks everything.
  std::string CheckInvariants() const;

 private:
  struct Page {
    int32_t references = 0;
    bool indexed = false;
    int32_t parent = kNoPage;
    uint64_t hash = 0;
    int32_t chain = kNoPage;  // next page of the same bucket
    int32_t older = kNoPage;  // neighbours in the list of evictable pages
    int32_t newer = kNoPage;
    std::string salt;  // first pages only
  };

  std::span<const int32_t> tokens(int32_t page) const {
    return {tokens_.data() + static_cast<int64_t>(page) * page_size_,
            static_cast<size_t>(page_size_)};
  }
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  void AppendEvictable(int32_t page);
  void UnlinkEvictable(int32_t page);
  void RemoveFromIndex(int32_t page);

  const int32_t page_size_;
  const bool index_pages_;
  const uint64_t hash_seed_;
  int64_t available_ = 0;
  std::vector<Page> pages_;
  std::vector<int32_t> free_;     // a stack
  std::vector<int32_t> tokens_;   // (pages, page_size), of indexed pages
  std::vector<int32_t> buckets_;  // a power of two of chains
  int32_t oldest_ = kNoPage;
  int32_t newest_ = kNoPage;
  std::function<void(int32_t)> on_forget_;
};

}  // namespace nibble::engine
