#include "server/api/ids.h"

#include <fmt/core.h>

#include <random>

namespace nibble::server {

std::string RandomId(std::string_view prefix) {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return fmt::format("{}{:016x}{:016x}", prefix, generator(), generator());
}

}  // namespace nibble::server
