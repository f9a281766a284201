// Memory of a pool's pages is there before it is written: a step ahead, and no further.
#include "engine/page_populator.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace nibble::engine {
namespace {

constexpr int32_t kPageSize = 16;
constexpr int64_t kPages = 2048;
constexpr int64_t kStep = 512;  // 2 MiB of keys of 2 heads of 64 in BF16

// Of the system's pages in [begin, begin + bytes), begin at the start of one.
int64_t PresentPages(std::byte* begin, int64_t bytes) {
  std::vector<unsigned char> present(bytes / ::sysconf(_SC_PAGESIZE));
  EXPECT_EQ(::mincore(begin, bytes, present.data()), 0);
  return std::ranges::count_if(present, [](unsigned char state) { return (state & 1) != 0; });
}

// Whether the system populates at all: emulators of user space do not.
bool SystemPopulates() {
  const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool populates = ::madvise(memory, bytes, 23) == 0 &&
                         PresentPages(static_cast<std::byte*>(memory), bytes) == 1;
  ::munmap(memory, bytes);
  return populates;
}

models::KvPool MakePool() {
  models::ModelInfo info;
  info.kv = {{.kv_heads = 2, .head_dim = 64}, {.kv_heads = 4, .head_dim = 64}};
  auto pool = models::KvPool::Create(info, kernels::KvFormat::kBf16, kPageSize, kPages);
  EXPECT_TRUE(pool.has_value());
  return std::move(*pool);
}

void WaitFor(const PagePopulator& populator, int64_t pages) {
  for (int i = 0; i < 10'000 && populator.populated() < pages; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ASSERT_EQ(populator.populated(), pages);
}

// Pages [0, pages) of every layer are there and those beyond are not.
void ExpectPresent(const models::KvPool& pool, int64_t pages) {
  const int64_t system_page = ::sysconf(_SC_PAGESIZE);
  for (const auto& [begin, page_bytes] : pool.parts()) {
    EXPECT_EQ(PresentPages(begin, pages * page_bytes), pages * page_bytes / system_page);
    EXPECT_EQ(PresentPages(begin + pages * page_bytes, (kPages - pages) * page_bytes), 0);
  }
}

TEST(PagePopulator, StaysAStepAhead) {
  if (!SystemPopulates()) GTEST_SKIP() << "madvise(MADV_POPULATE_WRITE) does nothing here";
  const models::KvPool pool = MakePool();
  ASSERT_EQ(pool.parts().size(), 4u);
  PagePopulator populator(pool);
  ASSERT_EQ(populator.step(), kStep);
  WaitFor(populator, kStep);
  ExpectPresent(pool, kStep);

  populator.Reach(0);
  WaitFor(populator, 2 * kStep);
  populator.Reach(kStep - 1);
  populator.Reach(3);
  ExpectPresent(pool, 2 * kStep);

  populator.Reach(2 * kStep);
  WaitFor(populator, kPages);
  populator.Reach(kPages - 1);
  ExpectPresent(pool, kPages);
}

TEST(PagePopulator, KeepsWhatPagesHold) {
  const models::KvPool pool = MakePool();
  for (const auto& [begin, page_bytes] : pool.parts()) begin[700 * page_bytes] = std::byte{7};
  PagePopulator populator(pool);
  populator.Reach(kStep);
  WaitFor(populator, 3 * kStep);
  for (const auto& [begin, page_bytes] : pool.parts())
    EXPECT_EQ(begin[700 * page_bytes], std::byte{7});
}

TEST(PagePopulator, EndsInTheMiddle) {
  const models::KvPool pool = MakePool();
  for (int i = 0; i < 20; ++i) {
    PagePopulator populator(pool);
    populator.Reach(kPages - 1);
  }
}

}  // namespace
}  // namespace nibble::engine
