// Limits that control groups (v1 and v2) put on this process: containers and systemd units set
// them, and neither sysconf nor /proc/meminfo shows them.
//
// A limit holds for a group and everything below it, so the tightest one from the process's own
// group up to the root counts. Inside a container the group's path may lie outside of what is
// mounted; walking up still ends at the mounted root. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace nibble {

struct CgroupLimits {
  std::optional<double> cpus;                // CPU quota / period
  std::optional<int64_t> memory_bytes;       // the tightest memory limit
  std::optional<int64_t> memory_free_bytes;  // least of limit - usage, page cache counted as free
};

// `root` stands before /proc and /sys: "" on a real system, a folder in tests.
CgroupLimits ReadCgroupLimits(const std::string& root = "");

}  // namespace nibble
