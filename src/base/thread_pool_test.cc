#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace nibble {
namespace {

std::vector<ThreadPlace> Places(const std::vector<double>& speeds) {
  std::vector<ThreadPlace> places;
  for (const double speed : speeds) places.push_back({.speed = speed});
  return places;
}

// Every item once, in ranges in the order of the threads, with borders at multiples of the grain.
void ExpectPartition(const ThreadPool& pool, int64_t n, int64_t grain) {
  int64_t next = 0;
  for (int thread = 0; thread < pool.threads(); ++thread) {
    const ThreadPool::Range range = pool.RangeOf(n, grain, thread);
    EXPECT_EQ(range.begin, next);
    EXPECT_TRUE(range.end % grain == 0 || range.end == n);
    EXPECT_LE(range.begin, range.end);
    next = range.end;
  }
  EXPECT_EQ(next, n);
}

TEST(ThreadPool, SplitsAllItemsAmongOneTo64Threads) {
  for (int threads = 1; threads <= 64; ++threads) {
    const ThreadPool pool(threads);
    for (const int64_t n : {1, 2, 63, 64, 65, 1000, 9496})
      for (const int64_t grain : {1, 4, 100}) ExpectPartition(pool, n, grain);
    for (int thread = 0; thread < threads; ++thread) {
      const ThreadPool::Range range = pool.RangeOf(9496, 1, thread);
      EXPECT_NEAR(static_cast<double>(range.end - range.begin), 9496.0 / threads, 1.0);
    }
  }
}

TEST(ThreadPool, SharesFollowTheSpeedOfTheCores) {
  std::vector<double> speeds(10, 3.9);
  speeds.insert(speeds.end(), 10, 2.1);
  const ThreadPool pool(Places(speeds));
  for (const int64_t n : {7, 128, 9496}) ExpectPartition(pool, n, 1);
  for (int thread = 0; thread < 20; ++thread) {
    const ThreadPool::Range range = pool.RangeOf(9496, 1, thread);
    EXPECT_NEAR(static_cast<double>(range.end - range.begin), 9496 * speeds[thread] / 60.0, 1.0);
  }
}

TEST(ThreadPool, BytesOfALargeFileAreSplitWithoutOverflow) {
  const ThreadPool pool(Places({1, 0.3, 0.5}));
  ExpectPartition(pool, int64_t{1} << 50, 1);
}

TEST(ThreadPool, EveryItemIsVisitedOnceBySpeedsOfAnyKind) {
  for (const auto& speeds : {std::vector<double>{1}, {1, 1, 1}, {5, 1}, {0.001, 1, 7, 0.5}}) {
    ThreadPool pool(Places(speeds));
    for (const int64_t n : {1, 5, 1000}) {
      std::vector<std::atomic<int>> visits(n);
      pool.ParallelFor(n, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      for (const auto& count : visits) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, NewSpeedsHoldFromTheNextCall) {
  ThreadPool pool(2);
  pool.SetSpeeds({3, 1});
  EXPECT_EQ(pool.RangeOf(100, 1, 0).end, 75);
}

TEST(ThreadPool, ACoreThatDoesNotExistIsNoError) {
  ThreadPool pool({{}, {.cpus = {1 << 14}}});
  std::atomic<int64_t> sum = 0;
  pool.ParallelFor(10, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
  EXPECT_EQ(sum, 10);
}

TEST(ThreadPool, AWorkerStaysOnTheCoresOfItsPlace) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  ThreadPool pool({{}, {.cpus = {cpus.back()}}, {.cpus = cpus}});
  std::vector<cpu_set_t> masks(3);
  pool.OnEveryThread(
      [&](int thread) { sched_getaffinity(0, sizeof(masks[thread]), &masks[thread]); });
  EXPECT_EQ(CPU_COUNT(&masks[1]), 1);
  EXPECT_TRUE(CPU_ISSET(cpus.back(), &masks[1]));
  EXPECT_TRUE(CPU_EQUAL(&masks[2], &allowed));
}

double ProcessSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// CPU time, which other processes do not change.
TEST(ThreadPool, AnIdlePoolBurnsNoCpu) {
  ThreadPool pool(8);
  pool.ParallelFor(8, 1, [](int64_t, int64_t, int) {});
  const double before = ProcessSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(ProcessSeconds() - before, 0.03);
}

TEST(ThreadPool, CallsEveryThreadOnceHoweverSlowItsCoreIs) {
  std::vector<ThreadPlace> places(12);
  for (size_t i = 7; i < places.size(); ++i) places[i].speed = 0.2;
  ThreadPool pool(places);
  std::vector<int> calls(places.size(), 0);
  for (int round = 0; round < 3; ++round) pool.OnEveryThread([&](int thread) { ++calls[thread]; });
  EXPECT_EQ(calls, std::vector<int>(places.size(), 3));
}

}  // namespace
}  // namespace nibble
