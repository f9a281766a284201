#include "device/cpu_places.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "base/log.h"
#include "device/cpu.h"

namespace nibble {
namespace {

// Cores whose capacities are closer than this are of one kind: turbo bins differ by a few percent.
constexpr double kSameKind = 0.9;

std::optional<int> ReadInt(const std::string& path) {
  std::ifstream file(path);
  int value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// "0-3,8,10-11"
std::vector<int> ReadCpuList(const std::string& path) {
  std::vector<int> cpus;
  std::ifstream file(path);
  std::string item;
  while (std::getline(file, item, ',')) {
    std::istringstream range(item);
    int first = 0;
    int last = 0;
    char dash = 0;
    if (!(range >> first)) continue;
    if (!(range >> dash >> last)) last = first;
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

bool Contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// Arm kernels tell a capacity; of x86, hybrid ones name the small cores.
int CapacityOf(int cpu, const std::vector<int>& small_cores, const std::string& root) {
  constexpr int kSmallCore = 600;
  const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
  if (const auto capacity = ReadInt(folder + "/cpu_capacity")) return std::max(1, *capacity);
  return Contains(small_cores, cpu) ? kSmallCore : CpuPlace().capacity;
}

// How many threads of each node: shares as even as whole threads allow.
std::map<int, int> ThreadsOfNodes(const std::map<int, std::vector<CpuPlace>>& nodes, int cpus,
                                  int threads) {
  std::map<int, int> counts;
  int seen = 0;
  for (const auto& [node, list] : nodes) {
    const int before = seen;
    seen += static_cast<int>(list.size());
    counts[node] = threads * seen / cpus - threads * before / cpus;
  }
  return counts;
}

bool OneKind(const std::vector<CpuPlace>& cpus) {
  const auto [least, most] = std::minmax_element(
      cpus.begin(), cpus.end(),
      [](const CpuPlace& a, const CpuPlace& b) { return a.capacity < b.capacity; });
  return least->capacity >= kSameKind * most->capacity;
}

bool OneNode(const std::vector<CpuPlace>& cpus) {
  return std::all_of(cpus.begin(), cpus.end(),
                     [&](const CpuPlace& cpu) { return cpu.node == cpus[0].node; });
}

bool SameKind(const CpuPlace& a, const CpuPlace& b) {
  return std::min(a.capacity, b.capacity) >= kSameKind * std::max(a.capacity, b.capacity);
}

// The cores of a node that are like one of them.
std::vector<int> CoresLike(const CpuPlace& one, const std::vector<CpuPlace>& node) {
  std::vector<int> cpus;
  for (const CpuPlace& other : node)
    if (SameKind(one, other)) cpus.push_back(other.cpu);
  std::sort(cpus.begin(), cpus.end());
  return cpus;
}

double Seconds(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Multiply-adds over a buffer in the first-level cache; per second of the thread's own time, the
// best of several passes: the first ones may find the core asleep.
double MultiplyRate() {
  constexpr int kFloats = 2048;
  constexpr int kRounds = 1000;
  constexpr int kPasses = 10;
  constexpr double kMostSeconds = 0.02;
  std::vector<float> x(kFloats, 1.0f), sum(kFloats, 0.0f);
  const double begin = Seconds(CLOCK_MONOTONIC);
  double best = 1e9;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = Seconds(CLOCK_THREAD_CPUTIME_ID);
    for (int round = 0; round < kRounds; ++round) {
      const float factor = 1.0f / static_cast<float>(round + 1);
      for (int i = 0; i < kFloats; ++i) sum[i] += x[i] * factor;
      asm volatile("" ::"r"(sum.data()) : "memory");
    }
    best = std::min(best, Seconds(CLOCK_THREAD_CPUTIME_ID) - start);
    if (Seconds(CLOCK_MONOTONIC) - begin > kMostSeconds) break;
  }
  return kFloats * double{kRounds} / std::max(best, 1e-9);
}

}  // namespace

std::vector<int> AllowedCpus() {
  std::vector<int> allowed;
  // A mask of the default size fails with EINVAL on machines of more than 1,024 cores.
  for (int cores = 1024; cores <= 1 << 20 && allowed.empty(); cores *= 2) {
    cpu_set_t* mask = CPU_ALLOC(cores);
    if (mask == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(cores);
    if (sched_getaffinity(0, bytes, mask) == 0) {
      for (int cpu = 0; cpu < cores; ++cpu)
        if (CPU_ISSET_S(cpu, bytes, mask)) allowed.push_back(cpu);
    }
    CPU_FREE(mask);
  }
  return allowed;
}

std::vector<CpuPlace> ReadCpuPlaces(const std::vector<int>& cpus, const std::string& root) {
  const std::vector<int> small_cores = ReadCpuList(root + "/sys/devices/cpu_atom/cpus");
  std::map<int, int> node_of;
  for (const int node : ReadCpuList(root + "/sys/devices/system/node/online")) {
    const std::string folder = root + "/sys/devices/system/node/node" + std::to_string(node);
    for (const int cpu : ReadCpuList(folder + "/cpulist")) node_of[cpu] = node;
  }
  std::vector<CpuPlace> places;
  for (const int cpu : cpus) {
    const std::vector<int> siblings =
        ReadCpuList(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                    "/topology/thread_siblings_list");
    const bool second = std::any_of(siblings.begin(), siblings.end(), [&](int other) {
      return other < cpu && Contains(cpus, other);
    });
    places.push_back({.cpu = cpu,
                      .node = node_of.count(cpu) != 0 ? node_of[cpu] : 0,
                      .capacity = CapacityOf(cpu, small_cores, root),
                      .sibling = second ? 1 : 0});
  }
  return places;
}

std::vector<ThreadPlace> PlanThreads(std::vector<CpuPlace> cpus, int threads) {
  threads = std::clamp(threads, 1, std::max(1, static_cast<int>(cpus.size())));
  if (cpus.empty() || (OneNode(cpus) && OneKind(cpus)))
    return std::vector<ThreadPlace>(static_cast<size_t>(threads));
  std::stable_sort(cpus.begin(), cpus.end(), [](const CpuPlace& a, const CpuPlace& b) {
    if (a.sibling != b.sibling) return a.sibling < b.sibling;
    return a.capacity > b.capacity;
  });
  std::map<int, std::vector<CpuPlace>> nodes;
  for (const CpuPlace& cpu : cpus) nodes[cpu.node].push_back(cpu);
  const std::map<int, int> counts = ThreadsOfNodes(nodes, static_cast<int>(cpus.size()), threads);
  std::vector<ThreadPlace> places;
  for (const auto& [node, list] : nodes)
    for (int i = 0; i < counts.at(node); ++i)
      places.push_back({.cpus = CoresLike(list[i], list), .speed = list[i].capacity / 1024.0});
  return places;
}

std::vector<double> MeasureSpeeds(ThreadPool& pool, const std::vector<double>& planned) {
  std::vector<double> measured(planned.size(), 0.0);
  pool.OnEveryThread([&](int thread) { measured[thread] = MultiplyRate(); });
  std::map<double, std::vector<double>> kinds;
  // The caller may have run anywhere.
  for (size_t i = 1; i < planned.size(); ++i) kinds[planned[i]].push_back(measured[i]);
  std::vector<double> speeds = planned;
  for (auto& [speed, rates] : kinds) {
    std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
    std::replace(speeds.begin(), speeds.end(), speed, rates[rates.size() / 2]);
  }
  if (kinds.count(planned[0]) == 0 && !kinds.empty()) {
    // The only one of its kind: by what the system says of it.
    const auto& [speed, rates] = *kinds.begin();
    speeds[0] = planned[0] / speed * rates[rates.size() / 2];
  }
  return speeds;
}

std::unique_ptr<ThreadPool> MakeThreadPool(int threads) {
  const int usable = GetCpuInfo().usable_cores;
  if (threads > usable) {
    LogWarning("{} threads asked for, but {} cores may be used: {} threads", threads, usable,
               usable);
  }
  const int count = threads > 0 ? std::min(threads, usable) : usable;
  const std::vector<CpuPlace> cpus = ReadCpuPlaces(AllowedCpus());
  std::vector<ThreadPlace> places = PlanThreads(cpus, count);
  if (cpus.empty()) places.resize(static_cast<size_t>(count));  // the mask cannot be read
  auto pool = std::make_unique<ThreadPool>(places);
  std::vector<double> planned;
  for (const ThreadPlace& place : places) planned.push_back(place.speed);
  const auto [least, most] = std::minmax_element(planned.begin(), planned.end());
  if (*least < kSameKind * *most) pool->SetSpeeds(MeasureSpeeds(*pool, planned));
  return pool;
}

}  // namespace nibble
