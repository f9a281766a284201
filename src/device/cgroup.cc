#include "device/cgroup.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string_view>

namespace nibble {
namespace {

// Above this a v1 limit means "none" (the kernel writes the largest page-aligned int64).
constexpr int64_t kUnlimited = int64_t{1} << 60;

// The first word of a file as an integer; nothing for "max", "-1" or a missing file.
std::optional<int64_t> ReadInteger(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value) || value < 0) return std::nullopt;
  return value;
}

// Sum of the given keys of a "key value" file such as memory.stat.
int64_t SumKeys(const std::string& path, std::string_view first, std::string_view second) {
  std::ifstream file(path);
  std::string key;
  int64_t value = 0;
  int64_t sum = 0;
  while (file >> key >> value) {
    if (key == first || key == second) sum += value;
  }
  return sum;
}

template <typename T>
void Tighten(std::optional<T>& limit, T value) {
  limit = limit ? std::min(*limit, value) : value;
}

void AddMemory(CgroupLimits& limits, int64_t limit, int64_t used, int64_t cache) {
  Tighten(limits.memory_bytes, limit);
  Tighten(limits.memory_free_bytes,
          std::max<int64_t>(0, limit - std::max<int64_t>(0, used - cache)));
}

void ReadV2Group(const std::string& folder, CgroupLimits& limits) {
  std::ifstream cpu_max(folder + "/cpu.max");  // "200000 100000" or "max 100000"
  double quota = 0;
  double period = 0;
  if (cpu_max >> quota >> period && quota > 0 && period > 0) Tighten(limits.cpus, quota / period);

  if (const auto limit = ReadInteger(folder + "/memory.max")) {
    AddMemory(limits, *limit, ReadInteger(folder + "/memory.current").value_or(0),
              SumKeys(folder + "/memory.stat", "inactive_file", "active_file"));
  }
}

void ReadV1CpuGroup(const std::string& folder, CgroupLimits& limits) {
  const auto quota = ReadInteger(folder + "/cpu.cfs_quota_us");
  const auto period = ReadInteger(folder + "/cpu.cfs_period_us");
  if (quota && period && *quota > 0 && *period > 0) {
    Tighten(limits.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
  }
}

void ReadV1MemoryGroup(const std::string& folder, CgroupLimits& limits) {
  const auto limit = ReadInteger(folder + "/memory.limit_in_bytes");
  if (!limit || *limit >= kUnlimited) return;
  AddMemory(limits, *limit, ReadInteger(folder + "/memory.usage_in_bytes").value_or(0),
            SumKeys(folder + "/memory.stat", "total_inactive_file", "total_active_file"));
}

// Calls read(mount + path), read(mount + parent of path), ..., read(mount).
template <typename Read>
void WalkUp(const std::string& mount, std::string path, Read read) {
  while (!path.empty() && path.back() == '/') path.pop_back();
  while (true) {
    read(mount + path);
    if (path.empty()) return;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

bool HasController(const std::string& controllers, std::string_view name) {
  std::istringstream list(controllers);
  std::string item;
  while (std::getline(list, item, ',')) {
    if (item == name) return true;
  }
  return false;
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& root) {
  CgroupLimits limits;
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "0::/user.slice" (v2), "4:cpu,cpuacct:/docker/1f" (v1)
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      WalkUp(mount, path, [&](const std::string& folder) { ReadV2Group(folder, limits); });
      // A hybrid system mounts v2 one level deeper.
      WalkUp(mount + "/unified", path,
             [&](const std::string& folder) { ReadV2Group(folder, limits); });
    }
    if (HasController(controllers, "cpu")) {
      WalkUp(mount + "/cpu", path,
             [&](const std::string& folder) { ReadV1CpuGroup(folder, limits); });
    }
    if (HasController(controllers, "memory")) {
      WalkUp(mount + "/memory", path,
             [&](const std::string& folder) { ReadV1MemoryGroup(folder, limits); });
    }
  }
  return limits;
}

}  // namespace nibble
