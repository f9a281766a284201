// What one client may cost: bytes, seconds, connections. Every limit has a test.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <utility>

namespace nibble::server {

struct HttpLimits {
  size_t header_bytes = 64 << 10;
  size_t body_bytes = 16 << 20;
  size_t all_bodies_bytes = 256 << 20;  // bodies that are in memory at once, over all connections
  size_t pipelined_bytes = 256 << 10;   // read ahead while a request is being answered
  int max_connections = 4096;

  std::chrono::milliseconds keep_alive_timeout{75'000};  // between requests
  std::chrono::milliseconds header_timeout{15'000};      // first byte to last header
  std::chrono::milliseconds body_idle_timeout{15'000};   // without a byte of the body
  std::chrono::milliseconds body_timeout{120'000};       // the whole body
  std::chrono::milliseconds write_timeout{30'000};       // without the peer taking a slice
  std::chrono::milliseconds heartbeat{15'000};      // silence on a stream before a comment line
  std::chrono::milliseconds linger_timeout{2'000};  // reading on after a refused request
};

// Bytes of request bodies in memory, counted over all connections. Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(size_t limit) : limit_(limit) {}
  void SetLimit(size_t limit) { limit_ = limit; }  // before it is shared

  bool TryTake(size_t bytes) {
    size_t used = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void Give(size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  size_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  size_t limit_;
  std::atomic<size_t> used_{0};
};

// A part of the budget, given back when the lease dies.
class ByteLease {
 public:
  ByteLease() = default;
  explicit ByteLease(ByteBudget* budget) : budget_(budget) {}
  ByteLease(ByteLease&& other) noexcept
      : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  ByteLease& operator=(ByteLease&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ByteLease() {
    if (budget_ != nullptr) budget_->Give(bytes_);
  }

  // Grows the lease to `bytes`; false when the budget is spent.
  bool Grow(size_t bytes) {
    if (bytes <= bytes_) return true;
    if (!budget_->TryTake(bytes - bytes_)) return false;
    bytes_ = bytes;
    return true;
  }

 private:
  ByteBudget* budget_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace nibble::server
