// Names and times of answers.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::server {

// prefix and 32 random hexadecimal digits. Any thread.
std::string RandomId(std::string_view prefix);

inline int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace nibble::server
