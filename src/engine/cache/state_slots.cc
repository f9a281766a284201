#include "engine/cache/state_slots.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::engine {

StateSlots::StateSlots(int64_t live, int64_t snapshots, int64_t pages)
    : live_limit_(live), snapshot_limit_(snapshots) {
  free_.reserve(static_cast<size_t>(live + snapshots));
  for (int64_t slot = live + snapshots - 1; slot >= 0; --slot)
    free_.push_back(static_cast<int32_t>(slot));
  snapshots_.reserve(static_cast<size_t>(snapshots));
  if (enabled()) by_page_.assign(static_cast<size_t>(pages), kNoSlot);
}

int32_t StateSlots::AcquireLive() {
  NIBBLE_CHECK(live_ < live_limit_ && !free_.empty(), "{} live slots of {}", live_, live_limit_);
  ++live_;
  const int32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void StateSlots::ReleaseLive(int32_t slot) {
  --live_;
  free_.push_back(slot);
}

int32_t StateSlots::Find(int32_t page) {
  if (!has(page)) return kNoSlot;
  const auto found = std::ranges::find(snapshots_, page, &Snapshot::page);
  found->last_use = ++uses_;
  return found->slot;
}

int32_t StateSlots::Add(int32_t page) {
  if (snapshot_limit_ == 0 || has(page)) return kNoSlot;
  if (snapshots() == snapshot_limit_)
    Remove(std::ranges::min_element(snapshots_, {}, &Snapshot::last_use)->page);
  const int32_t slot = free_.back();
  free_.pop_back();
  snapshots_.push_back({.slot = slot, .page = page, .last_use = ++uses_});
  by_page_[page] = slot;
  return slot;
}

void StateSlots::Remove(int32_t page) {
  if (!has(page)) return;
  const auto found = std::ranges::find(snapshots_, page, &Snapshot::page);
  free_.push_back(found->slot);
  by_page_[page] = kNoSlot;
  *found = snapshots_.back();
  snapshots_.pop_back();
}

std::string StateSlots::CheckInvariants() const {
  const auto held = static_cast<int64_t>(free_.size()) + live_ + snapshots();
  if (held != live_limit_ + snapshot_limit_)
    return fmt::format("SLOTS: {} of {} slots are accounted for", held,
                       live_limit_ + snapshot_limit_);
  if (live_ > live_limit_ || snapshots() > snapshot_limit_)
    return fmt::format("RESERVED: {} live slots and {} snapshots", live_, snapshots());
  for (const Snapshot& snapshot : snapshots_) {
    if (by_page_[snapshot.page] != snapshot.slot)
      return fmt::format("SLOTS: the snapshot of page {} is lost", snapshot.page);
  }
  return "";
}

}  // namespace nibble::engine
