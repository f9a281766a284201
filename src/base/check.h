// NIBBLE_CHECK(condition, format, args...): for programmer errors that no input can reach. Prints
// and aborts.
#pragma once

#include <fmt/core.h>

#include <string>

namespace nibble {

[[noreturn]] void CheckFailed(const char* condition, const char* file, int line,
                              const std::string& message);

}  // namespace nibble

#define NIBBLE_CHECK(condition, ...)                                                        \
  do {                                                                                      \
    if (!(condition)) [[unlikely]] {                                                        \
      ::nibble::CheckFailed(#condition, __FILE__, __LINE__, ::fmt::format("" __VA_ARGS__)); \
    }                                                                                       \
  } while (false)
