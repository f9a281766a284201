#include "device/cpu_places.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <string>

#include "device/cpu.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// A folder that plays the part of "/".
class FakeSystem : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_places_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const fs::path file = root_ + "/sys/devices/" + path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }

  std::string root_;
};

std::vector<int> FirstCpus(int count) {
  std::vector<int> cpus(count);
  std::iota(cpus.begin(), cpus.end(), 0);
  return cpus;
}

std::vector<CpuPlace> TwoNodes(int cores_per_node) {
  std::vector<CpuPlace> cpus;
  for (int cpu = 0; cpu < 2 * cores_per_node; ++cpu)
    cpus.push_back({.cpu = cpu, .node = cpu % 2});  // some systems number them in turn
  return cpus;
}

TEST_F(FakeSystem, NodesCapacitiesAndSiblingsAreRead) {
  Write("system/node/online", "0-1");
  Write("system/node/node0/cpulist", "0-1,4");
  Write("system/node/node1/cpulist", "2-3,5");
  Write("system/cpu/cpu4/topology/thread_siblings_list", "0,4");
  Write("system/cpu/cpu3/cpu_capacity", "512");
  const std::vector<CpuPlace> places = ReadCpuPlaces({0, 2, 3, 4, 5}, root_);
  ASSERT_EQ(places.size(), 5u);
  EXPECT_EQ(places[0].node, 0);
  EXPECT_EQ(places[1].node, 1);
  EXPECT_EQ(places[2].capacity, 512);
  EXPECT_EQ(places[1].capacity, 1024);
  EXPECT_EQ(places[3].sibling, 1);
  EXPECT_EQ(places[4].sibling, 0);
}

// The first of a pair may belong to somebody else.
TEST_F(FakeSystem, ASiblingWithoutItsFirstIsACoreOfItsOwn) {
  Write("system/cpu/cpu4/topology/thread_siblings_list", "0,4");
  EXPECT_EQ(ReadCpuPlaces({4, 5}, root_)[0].sibling, 0);
}

TEST_F(FakeSystem, SmallCoresOfHybridProcessorsAreSlower) {
  Write("cpu_atom/cpus", "2-3");
  const std::vector<CpuPlace> places = ReadCpuPlaces(FirstCpus(4), root_);
  EXPECT_GT(places[1].capacity, places[2].capacity);
}

TEST_F(FakeSystem, ASystemThatTellsNothingHasEqualCores) {
  for (const CpuPlace& place : ReadCpuPlaces(FirstCpus(3), root_)) {
    EXPECT_EQ(place.node, 0);
    EXPECT_EQ(place.capacity, 1024);
  }
}

TEST(PlanThreads, EqualCoresAreLeftToTheSystem) {
  std::vector<CpuPlace> cpus;
  for (int cpu = 0; cpu < 64; ++cpu) cpus.push_back({.cpu = cpu, .capacity = 1024 - cpu % 8});
  for (int threads = 1; threads <= 64; ++threads) {
    const std::vector<ThreadPlace> places = PlanThreads(cpus, threads);
    EXPECT_EQ(static_cast<int>(places.size()), threads);
    for (const ThreadPlace& place : places) {
      EXPECT_TRUE(place.cpus.empty());
      EXPECT_EQ(place.speed, 1);
    }
  }
}

TEST(PlanThreads, NeverMoreThreadsThanCores) {
  EXPECT_EQ(PlanThreads({{.cpu = 3}, {.cpu = 5}}, 16).size(), 2u);
  EXPECT_EQ(PlanThreads(TwoNodes(2), 16).size(), 4u);
  EXPECT_EQ(PlanThreads({}, 16).size(), 1u);
}

TEST(PlanThreads, NodesShareThreadsEvenlyAndEachHasAContiguousRange) {
  const std::vector<CpuPlace> cpus = TwoNodes(32);
  for (int threads = 1; threads <= 64; ++threads) {
    SCOPED_TRACE(threads);
    const std::vector<ThreadPlace> places = PlanThreads(cpus, threads);
    ASSERT_EQ(static_cast<int>(places.size()), threads);
    int of_first = 0;
    for (size_t i = 0; i < places.size(); ++i) {
      ASSERT_EQ(places[i].cpus.size(), 32u);
      const int node = cpus[places[i].cpus[0]].node;
      for (const int cpu : places[i].cpus) EXPECT_EQ(cpus[cpu].node, node);
      if (i > 0) {
        EXPECT_GE(node, cpus[places[i - 1].cpus[0]].node);
      }
      of_first += node == 0;
    }
    EXPECT_LE(std::abs(2 * of_first - threads), 1);
  }
}

// What a thread packs at load is what it reads later: panels never change their node.
TEST(PlanThreads, PanelsAreReadOnTheNodeThatPackedThem) {
  const std::vector<CpuPlace> cpus = TwoNodes(8);
  for (int threads : {2, 5, 16}) {
    const std::vector<ThreadPlace> places = PlanThreads(cpus, threads);
    std::vector<ThreadPlace> unpinned;
    for (const ThreadPlace& place : places) unpinned.push_back({.speed = place.speed});
    const ThreadPool pool(unpinned);
    for (const int64_t panels : {36, 128, 9496}) {
      int64_t moved = 0;
      for (int thread = 0; thread < threads; ++thread) {
        const ThreadPool::Range packed = pool.RangeOf(panels * 16, 16, thread);  // rows
        const ThreadPool::Range read = pool.RangeOf(panels, 1, thread);          // panels
        EXPECT_EQ(packed.begin, read.begin * 16);
        moved += std::abs(packed.end - std::min(read.end * 16, panels * 16));
      }
      EXPECT_EQ(moved, 0);
    }
  }
}

// GB10: 10 Cortex-X925 and 10 A725.
TEST(PlanThreads, FastCoresComeFirstAndSharesFollowTheirSpeed) {
  std::vector<CpuPlace> cpus;
  for (int cpu = 0; cpu < 20; ++cpu)
    cpus.push_back({.cpu = cpu, .capacity = cpu % 10 < 5 ? 718 : 1024});
  for (int threads = 1; threads <= 20; ++threads) {
    const std::vector<ThreadPlace> places = PlanThreads(cpus, threads);
    for (int i = 0; i < threads; ++i) {
      ASSERT_EQ(places[i].cpus.size(), 10u);  // all of the kind: the system chooses among them
      for (const int cpu : places[i].cpus) EXPECT_EQ(cpus[cpu].capacity, i < 10 ? 1024 : 718);
      EXPECT_DOUBLE_EQ(places[i].speed, i < 10 ? 1.0 : 718 / 1024.0);
    }
  }
}

// Two large cores of two threads each, four small ones.
TEST(PlanThreads, SecondThreadsOfACoreComeLast) {
  std::vector<CpuPlace> cpus;
  for (int cpu = 0; cpu < 8; ++cpu)
    cpus.push_back(
        {.cpu = cpu, .capacity = cpu < 4 ? 1024 : 600, .sibling = cpu < 4 ? cpu % 2 : 0});
  const std::vector<ThreadPlace> places = PlanThreads(cpus, 6);
  const std::vector<int> large = {0, 1, 2, 3};
  const std::vector<int> small = {4, 5, 6, 7};
  for (size_t i = 0; i < places.size(); ++i) EXPECT_EQ(places[i].cpus, i < 2 ? large : small);
}

TEST(MeasureSpeeds, ThreadsOfOneKindGetTheSameSpeed) {
  ThreadPool pool(4);
  const std::vector<double> speeds = MeasureSpeeds(pool, {1.0, 1.0, 0.5, 0.5});
  EXPECT_EQ(speeds[0], speeds[1]);
  EXPECT_EQ(speeds[2], speeds[3]);
  for (const double speed : speeds) EXPECT_GT(speed, 0);
  const std::vector<double> single = MeasureSpeeds(pool, {2.0, 1.0, 1.0, 1.0});
  EXPECT_DOUBLE_EQ(single[0], 2 * single[1]);
}

TEST(MakeThreadPool, HasNoMoreThreadsThanMayRun) {
  const int usable = GetCpuInfo().usable_cores;
  EXPECT_EQ(MakeThreadPool(0)->threads(), usable);
  EXPECT_EQ(MakeThreadPool(1000)->threads(), usable);
  EXPECT_EQ(MakeThreadPool(1)->threads(), 1);
}

}  // namespace
}  // namespace nibble
