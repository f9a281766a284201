// Which cores a pool's threads run on.
//
// Machines of one kind of core and one memory node, the usual ones, leave that to the system. Where
// nodes differ, workers stay on their node and are numbered by node: the contiguous range of panels
// that a thread packs is in its own node's memory, and is the one that it reads later. Where cores
// differ (GB10: Cortex-X925 and A725), workers stay on cores of one kind, the fastest come first,
// and ranges are as long as the cores are fast, measured at the start. Which of these cores a
// worker gets is the system's choice: another process may have chosen the same kind.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"

namespace nibble {

// A core that this process may use.
struct CpuPlace {
  int cpu = 0;
  int node = 0;         // of memory
  int capacity = 1024;  // relative to the machine's fastest, as the system tells
  int sibling = 0;      // 1: shares its core with one before it
};

// The given cores, as /sys describes them. `root` stands before the path, for tests.
std::vector<CpuPlace> ReadCpuPlaces(const std::vector<int>& cpus, const std::string& root = "");

// Places for `threads` threads: as many of each node as its share of the cores, the fastest of a
// node first and no second thread of a core before every core has one. A place is all cores of that
// kind and node. More threads than cores are cut to the cores.
std::vector<ThreadPlace> PlanThreads(std::vector<CpuPlace> cpus, int threads);

// The cores that the affinity mask allows.
std::vector<int> AllowedCpus();

// Speeds of the pool's threads, measured side by side, the best of several passes in some 20 ms;
// threads of equal `planned` speed get the same.
std::vector<double> MeasureSpeeds(ThreadPool& pool, const std::vector<double>& planned);

// A pool of at most as many threads as may run (affinity, cgroup quota), on places planned and
// measured. 0: as many as may.
std::unique_ptr<ThreadPool> MakeThreadPool(int threads);

}  // namespace nibble
