#include "base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/log.h"

namespace nibble {
namespace {

constexpr int kBarCells = 28;

int64_t ElapsedMs(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() -
                                                               start)
      .count();
}

}  // namespace

std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

Progress::Progress(std::string title, int64_t total, Unit unit, bool quiet)
    : title_(std::move(title)),
      total_(total),
      unit_(unit),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  next_print_ms_ = terminal_ ? 100 : 5000;
}

Progress::~Progress() {
  if (!quiet_) Print(true);
}

double Progress::fraction() const {
  if (total_ <= 0) return 0;
  return std::clamp(static_cast<double>(done_.load()) / static_cast<double>(total_), 0.0, 1.0);
}

void Progress::Advance(int64_t amount) {
  done_.fetch_add(amount, std::memory_order_relaxed);
  if (quiet_) return;
  const int64_t now = ElapsedMs(start_);
  int64_t due = next_print_ms_.load();
  if (now < due) return;
  if (next_print_ms_.compare_exchange_strong(due, now + (terminal_ ? 100 : 5000))) Print(false);
}

void Progress::Print(bool last) {
  std::lock_guard lock(mutex_);
  const double seconds = std::max(1e-3, static_cast<double>(ElapsedMs(start_)) / 1e3);
  const int64_t done = done_.load();
  const double part = fraction();
  const std::string amount = unit_ == Unit::kBytes
                                 ? fmt::format("{} {}/s", FormatBytes(static_cast<double>(done)),
                                               FormatBytes(static_cast<double>(done) / seconds))
                                 : fmt::format("{}/{}", done, total_);
  if (!terminal_) {
    if (last && seconds < 5) return;  // quick work needs no line in a log
    LogInfo("{} {:.0f}% {}", title_, part * 100, amount);
    return;
  }
  const int cells = static_cast<int>(part * kBarCells);
  std::string bar;
  for (int cell = 0; cell < kBarCells; ++cell) bar += cell < cells ? "█" : "░";
  const std::string eta = part > 0.01 && !last
                              ? fmt::format(" {:.0f}s left", seconds * (1 - part) / part)
                              : fmt::format(" {:.1f}s", seconds);
  std::fprintf(stderr, "\r\033[K%s %s %3.0f%% %s%s", title_.c_str(), bar.c_str(), part * 100,
               amount.c_str(), eta.c_str());
  if (last) std::fputc('\n', stderr);
  std::fflush(stderr);
}

}  // namespace nibble
