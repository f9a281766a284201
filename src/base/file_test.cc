#include "base/file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <vector>

namespace nibble {
namespace {

constexpr long kTmpfsMagic = 0x01021994;

// A synced file of 8 MiB, byte i is i mod 251.
class DropTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = (std::filesystem::temp_directory_path() / "nibble_file_XXXXXX").string();
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    path_ = folder + "/bytes";
    std::string bytes(kBytes, '\0');
    for (size_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<char>(i % 251);
    ASSERT_TRUE(WriteFileAtomic(path_, bytes));  // synced: only clean pages can go
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static size_t PagesInMemory(const MappedFile& file) {
    std::vector<unsigned char> there(kBytes / 4096);
    EXPECT_EQ(mincore(const_cast<std::byte*>(file.bytes().data()), kBytes, there.data()), 0);
    size_t count = 0;
    for (const unsigned char page : there) count += page & 1;
    return count;
  }

  static constexpr size_t kBytes = size_t{8} << 20;
  std::string folder_;
  std::string path_;
};

TEST_F(DropTest, TakesTheFileOutOfThePageCacheAndItIsReadAgain) {
  struct statfs info;
  ASSERT_EQ(statfs(path_.c_str(), &info), 0);
  if (info.f_type == kTmpfsMagic) GTEST_SKIP() << path_ << " is in tmpfs, which is the page cache";
  auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file) << file.error().message();
  size_t sum = 0;
  for (const std::byte byte : file->bytes()) sum += static_cast<size_t>(byte);
  EXPECT_GT(PagesInMemory(*file), kBytes / 4096 * 9 / 10);
  file->Drop();
  EXPECT_LT(PagesInMemory(*file), kBytes / 4096 / 10);
  size_t again = 0;
  for (const std::byte byte : file->bytes()) again += static_cast<size_t>(byte);
  EXPECT_EQ(again, sum);
}

}  // namespace
}  // namespace nibble
