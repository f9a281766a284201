// Progress of long work: a bar on a terminal, a line every few seconds elsewhere, and a callback
// for /health. Thread-safe: Advance may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace nibble {

class Progress {
 public:
  enum class Unit { kBytes, kItems };

  // title: "loading", "quantizing". total <= 0: unknown.
  Progress(std::string title, int64_t total, Unit unit = Unit::kBytes, bool quiet = false);
  ~Progress();  // finishes the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Advance(int64_t amount);
  double fraction() const;  // 0..1
  const std::string& title() const { return title_; }

 private:
  void Print(bool last);

  const std::string title_;
  const int64_t total_;
  const Unit unit_;
  const bool quiet_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::atomic<int64_t> done_{0};
  std::atomic<int64_t> next_print_ms_{0};
  std::mutex mutex_;  // one printer at a time
};

std::string FormatBytes(double bytes);  // "4.5 GiB"

}  // namespace nibble
