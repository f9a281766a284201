#include "device/cpu.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "device/buffer.h"
#include "device/cgroup.h"
#include "device/device.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// A folder that plays the part of "/" for ReadCgroupLimits.
class FakeRoot : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_cgroup_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const fs::path file = root_ + path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(FakeRoot, NoGroupsMeansNoLimits) {
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_FALSE(limits.cpus);
  EXPECT_FALSE(limits.memory_bytes);
  EXPECT_FALSE(limits.memory_free_bytes);
}

TEST_F(FakeRoot, V2TakesTheTightestLimitOnTheWayUp) {
  Write("/proc/self/cgroup", "0::/kube/pod/box\n");
  Write("/sys/fs/cgroup/kube/cpu.max", "150000 100000\n");
  Write("/sys/fs/cgroup/kube/pod/cpu.max", "400000 100000\n");
  Write("/sys/fs/cgroup/kube/pod/box/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/kube/pod/box/memory.max", "1000000\n");
  Write("/sys/fs/cgroup/kube/pod/box/memory.current", "700000\n");
  Write("/sys/fs/cgroup/kube/pod/box/memory.stat",
        "anon 400000\nfile 300000\ninactive_file 200000\nactive_file 50000\n");
  Write("/sys/fs/cgroup/kube/memory.max", "max\n");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_DOUBLE_EQ(limits.cpus.value_or(0), 1.5);
  EXPECT_EQ(limits.memory_bytes.value_or(0), 1000000);
  EXPECT_EQ(limits.memory_free_bytes.value_or(0), 550000);
}

TEST_F(FakeRoot, V2InsideAContainerReadsTheMountedRoot) {
  Write("/proc/self/cgroup", "0::/../../elsewhere\n");
  Write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_DOUBLE_EQ(ReadCgroupLimits(root_).cpus.value_or(0), 2.0);
}

TEST_F(FakeRoot, V1ReadsCpuAndMemoryControllers) {
  Write("/proc/self/cgroup",
        "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n3:cpuset:/docker/1f\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/cpu/docker/1f/cpu.cfs_quota_us", "50000\n");
  Write("/sys/fs/cgroup/cpu/docker/1f/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes", "5000\n");
  Write("/sys/fs/cgroup/memory/docker/1f/memory.usage_in_bytes", "6000\n");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_DOUBLE_EQ(limits.cpus.value_or(0), 0.5);
  EXPECT_EQ(limits.memory_bytes.value_or(0), 5000);
  EXPECT_EQ(limits.memory_free_bytes.value_or(-1), 0);
}

TEST_F(FakeRoot, NonsenseIsNoLimit) {
  Write("/proc/self/cgroup", "garbage\n:\n0::\n");
  Write("/sys/fs/cgroup/cpu.max", "x y\n");
  Write("/sys/fs/cgroup/memory.max", "-5\n");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_FALSE(limits.cpus);
  EXPECT_FALSE(limits.memory_bytes);
}

TEST(Cpu, ThisMachineIsPlausible) {
  const CpuInfo& info = GetCpuInfo();
  EXPECT_FALSE(info.model.empty());
  EXPECT_GE(info.usable_cores, 1);
  EXPECT_LE(info.usable_cores, info.logical_cores);
  EXPECT_TRUE(info.features.avx2 || !info.features.avx512);
}

TEST(Cpu, MemoryIsPlausible) {
  const MemoryInfo memory = GetMemoryInfo();
  EXPECT_GT(memory.total_bytes, int64_t{64} << 20);
  EXPECT_GT(memory.available_bytes, 0);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
}

TEST(UnifiedMemory, CountsThePageCacheAsFreeAndLeavesAReserve) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  const Device::Memory spark =
      UnifiedMemory({.total_bytes = 128 * kGiB, .available_bytes = 120 * kGiB});
  EXPECT_EQ(spark.total_bytes, 128 * kGiB);
  EXPECT_EQ(spark.free_bytes, 116 * kGiB);
  EXPECT_EQ(UnifiedMemory({.total_bytes = 8 * kGiB, .available_bytes = 7 * kGiB}).free_bytes,
            5 * kGiB);
  EXPECT_EQ(UnifiedMemory({.total_bytes = 8 * kGiB, .available_bytes = kGiB}).free_bytes, 0);
}

TEST(Cpu, ReadBandwidthIsPositive) {
  ThreadPool pool(2);
  EXPECT_GT(MeasureReadBandwidth(pool, int64_t{8} << 20), 1e8);
}

}  // namespace
}  // namespace nibble
