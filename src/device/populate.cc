#include "device/populate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace nibble {
namespace {

#ifdef MADV_POPULATE_WRITE
constexpr int kPopulateWrite = MADV_POPULATE_WRITE;
#else
constexpr int kPopulateWrite = 23;  // Linux 5.14, younger than some C libraries
#endif

}  // namespace

void PopulateMemory(std::byte* memory, size_t bytes) {
  if (bytes == 0) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = address / page * page;
  static_cast<void>(
      ::madvise(reinterpret_cast<void*>(begin), address + bytes - begin, kPopulateWrite));
}

}  // namespace nibble
