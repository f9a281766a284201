#include "engine/cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace nibble::engine {
namespace {

constexpr int32_t kPageSize = 16;

std::vector<int32_t> Content(int32_t value) { return std::vector<int32_t>(kPageSize, value); }

TEST(KvCache, FindsAPrefixByContentAndSalt) {
  KvCache cache(8, kPageSize, true, 1);
  const int32_t first = cache.Allocate();
  const int32_t second = cache.Allocate();
  const uint64_t h1 = cache.ChainHash(0, Content(1), "a");
  const uint64_t h2 = cache.ChainHash(h1, Content(2), "");
  EXPECT_EQ(cache.Insert(KvCache::kNoPage, h1, Content(1), "a", first), first);
  EXPECT_EQ(cache.Insert(first, h2, Content(2), "a", second), second);
  cache.Release(second);
  cache.Release(first);
  EXPECT_EQ(cache.available(), 8);

  EXPECT_EQ(cache.Find(KvCache::kNoPage, h1, Content(1), "a"), first);
  EXPECT_EQ(cache.Find(first, h2, Content(2), "a"), second);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, h1, Content(1), "b"), KvCache::kNoPage);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, h1, Content(1), ""), KvCache::kNoPage);
  EXPECT_NE(cache.ChainHash(0, Content(1), "b"), h1);
}

// COMPARED: an equal hash alone is no hit.
TEST(KvCache, CollidingHashesDoNotHit) {
  KvCache cache(8, kPageSize, true, 1);
  const int32_t a = cache.Allocate();
  const int32_t b = cache.Allocate();
  ASSERT_EQ(cache.Insert(KvCache::kNoPage, 42, Content(1), "", a), a);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, 42, Content(2), ""), KvCache::kNoPage);
  ASSERT_EQ(cache.Insert(KvCache::kNoPage, 42, Content(2), "", b), b);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, 42, Content(1), ""), a);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, 42, Content(2), ""), b);
  EXPECT_EQ(cache.Find(a, 42, Content(2), ""), KvCache::kNoPage) << "another parent";
  EXPECT_EQ(cache.CheckInvariants(), "");
}

TEST(KvCache, EqualContentIsKeptOnce) {
  KvCache cache(4, kPageSize, true, 1);
  const int32_t a = cache.Allocate();
  const int32_t b = cache.Allocate();
  ASSERT_EQ(cache.Insert(KvCache::kNoPage, 1, Content(1), "", a), a);
  EXPECT_EQ(cache.Insert(KvCache::kNoPage, 1, Content(1), "", b), a);
  EXPECT_EQ(cache.references(a), 2);
  EXPECT_EQ(cache.references(b), 0);
  EXPECT_EQ(cache.available(), 3);
}

TEST(KvCache, EvictsTheLeastRecentlyReleased) {
  KvCache cache(3, kPageSize, true, 1);
  int32_t pages[3];
  for (int32_t i = 0; i < 3; ++i) {
    pages[i] = cache.Allocate();
    ASSERT_EQ(cache.Insert(KvCache::kNoPage, i, Content(i), "", pages[i]), pages[i]);
  }
  for (const int32_t i : {1, 0, 2}) cache.Release(pages[i]);
  cache.Reference(pages[1]);  // touched: now the newest
  cache.Release(pages[1]);
  EXPECT_EQ(cache.Allocate(), pages[0]);
  EXPECT_EQ(cache.Allocate(), pages[2]);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, 1, Content(1), ""), pages[1]);
  EXPECT_EQ(cache.Allocate(), pages[1]);
  EXPECT_EQ(cache.Find(KvCache::kNoPage, 1, Content(1), ""), KvCache::kNoPage);
  EXPECT_EQ(cache.available(), 0);
}

// Random holders that match, extend, share and let go, against a map from prefix to page; hashes
// are cut to three bits, so that they collide all the time.
TEST(KvCache, ModelChecking) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](uint32_t n) { return static_cast<int32_t>(random() % n); };
    KvCache cache(2 + pick(30), kPageSize, true, seed);
    struct Holder {
      std::vector<int32_t> contents;
      std::vector<int32_t> pages;
      std::vector<uint64_t> hashes;
    };
    std::vector<Holder> holders;
    std::map<std::vector<int32_t>, int32_t> known;  // of pages held now
    for (int step = 0; step < 400; ++step) {
      const int action = pick(10);
      if (action < 3) {  // a new holder takes what is cached of a random prefix
        Holder holder;
        int32_t parent = KvCache::kNoPage;
        for (int depth = pick(5); depth > 0; --depth) {
          const int32_t content = pick(3);
          const uint64_t hash = static_cast<uint64_t>(content) & 7;
          const int32_t page = cache.Find(parent, hash, Content(content), "");
          std::vector<int32_t> path = holder.contents;
          path.push_back(content);
          if (const auto held = known.find(path); held != known.end()) {
            ASSERT_EQ(page, held->second) << "a held page must be found";
          }
          if (page == KvCache::kNoPage) break;
          cache.Reference(page);
          holder.contents.push_back(content);
          holder.pages.push_back(page);
          parent = page;
        }
        holders.push_back(std::move(holder));
      } else if (action < 7 && !holders.empty() && cache.available() > 0) {  // extends by a page
        Holder& holder = holders[pick(holders.size())];
        const int32_t content = pick(3);
        const int32_t page = cache.Allocate();
        ASSERT_EQ(cache.references(page), 1);
        ASSERT_FALSE(cache.indexed(page));
        const int32_t parent = holder.pages.empty() ? KvCache::kNoPage : holder.pages.back();
        holder.pages.push_back(
            cache.Insert(parent, static_cast<uint64_t>(content) & 7, Content(content), "", page));
        holder.contents.push_back(content);
      } else if (!holders.empty()) {  // lets go
        const int32_t which = pick(holders.size());
        Holder holder = std::move(holders[which]);
        holders.erase(holders.begin() + which);
        for (auto page = holder.pages.rbegin(); page != holder.pages.rend(); ++page)
          cache.Release(*page);
      }
      known.clear();
      std::map<int32_t, int32_t> references;
      for (const Holder& holder : holders) {
        for (size_t i = 0; i < holder.pages.size(); ++i) {
          known[{holder.contents.begin(), holder.contents.begin() + i + 1}] = holder.pages[i];
          ++references[holder.pages[i]];
        }
      }
      for (int32_t page = 0; page < cache.pages(); ++page)
        ASSERT_EQ(cache.references(page), references[page]) << "page " << page;
      ASSERT_EQ(cache.available(), cache.pages() - static_cast<int64_t>(references.size()) +
                                       std::ranges::count(references, 0, [](const auto& entry) {
                                         return entry.second;
                                       }));
      ASSERT_EQ(cache.CheckInvariants(), "") << "seed " << seed << " step " << step;
    }
  }
}

}  // namespace
}  // namespace nibble::engine
