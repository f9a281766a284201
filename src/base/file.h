// Files: read-only mappings, whole-file reads and atomic writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble {

// A read-only mapping of a whole file. Movable; the bytes stay valid while it lives. The size is
// taken at open: a file that another process cuts short afterwards raises SIGBUS on access, as with
// any mapping.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::string& path() const { return path_; }

  // A hint that bytes [offset, offset + size) are not needed soon: their pages leave the process
  // and are read again if touched. May be called while others read.
  void Release(size_t offset, size_t size) const;
  // The same of the whole file, and of the system's page cache where nobody else maps it: what has
  // been copied out should not be kept twice.
  void Drop() const;

 private:
  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file; kTooLarge beyond max_bytes.
Result<std::string> ReadFile(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Writes a temporary file beside `path`, syncs it and renames it: readers see the old file or the
// new one.
Status WriteFileAtomic(const std::string& path, std::string_view bytes);

bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);

}  // namespace nibble
