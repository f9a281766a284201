// StateSlots: who holds which state slot of the KvPool, for models with recurrent layers.
//
// A running sequence has a live slot, whose content follows its tokens. A snapshot is a copy taken
// when a sequence had computed exactly the tokens up to the end of an indexed page; the page's
// number identifies that prefix (PARENT-STAYS of KvCache), so the page names the snapshot. A prefix
// can be reused only up to a page with a snapshot. Invariants (asserted by CheckInvariants):
//   SLOTS      every slot is exactly one of: free, live, a snapshot.
//   RESERVED   live slots are never more than promised to the constructor; snapshots only use what
//              is beyond them.
// The least recently used snapshot gives way. Thread-safety: one owner (the engine thread). After
// construction nothing is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::engine {

class StateSlots {
 public:
  static constexpr int32_t kNoSlot = -1;

  // pages: of the KvCache whose pages name snapshots.
  StateSlots(int64_t live, int64_t snapshots, int64_t pages);

  bool enabled() const { return live_limit_ > 0; }

  // Requires fewer live slots than the limit.
  int32_t AcquireLive();
  void ReleaseLive(int32_t slot);

  // The snapshot of a page, or kNoSlot. Counts as a use.
  int32_t Find(int32_t page);
  bool has(int32_t page) const { return !by_page_.empty() && by_page_[page] != kNoSlot; }

  // A slot to copy the state at the end of `page` into; the least recently used snapshot gives way.
  // kNoSlot where there is no room for any, or where the page has one already.
  int32_t Add(int32_t page);
  // The page's content is gone, or its snapshot is no longer worth its slot.
  void Remove(int32_t page);

  int64_t snapshots() const { return static_cast<int64_t>(snapshots_.size()); }
  int64_t live() const { return live_; }

  // Empty if every invariant holds. For tests.
  std::string CheckInvariants() const;

 private:
  struct Snapshot {
    int32_t slot = kNoSlot;
    int32_t page = -1;
    uint64_t last_use = 0;
  };

  const int64_t live_limit_;
  const int64_t snapshot_limit_;
  int64_t live_ = 0;
  uint64_t uses_ = 0;
  std::vector<int32_t> free_;        // a stack
  std::vector<Snapshot> snapshots_;  // few: searched
  std::vector<int32_t> by_page_;     // page → slot, or kNoSlot
};

}  // namespace nibble::engine
