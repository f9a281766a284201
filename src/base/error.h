// Errors and results.
//
// A function that can fail for a reason outside the program returns Result<T>. An Error has a code,
// which maps one to one on an HTTP status (server/api/errors.cc), and a message for people: it
// names the thing, the value, the allowed range and the way out. Programmer errors are NIBBLE_CHECK
// (check.h), never an Error.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace nibble {

enum class Code {
  kInvalidArgument,    // 400: the caller's value is wrong
  kUnsupported,        // 400: a valid request for something this build or model cannot do
  kUnauthenticated,    // 401
  kNotFound,           // 404
  kTooLarge,           // 413
  kCancelled,          // 499: the client went away
  kCorruption,         // 500: a file's or a tensor's values cannot be
  kInternal,           // 503: our own fault
  kResourceExhausted,  // 503 with Retry-After: full, try again
  kUnavailable,        // 503: loading, draining, or a file that cannot be read
  kDeadline,           // 504
};

std::string_view CodeName(Code code);

class [[nodiscard]] Error {
 public:
  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  Code code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same error with where it happened in front: "shard 3: ...".
  Error Context(std::string_view where) const {
    return Error(code_, fmt::format("{}: {}", where, message_));
  }

 private:
  Code code_;
  std::string message_;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return Fail(Code::kInvalidArgument, "page_size {}: must be a power of two between 16 and 256",
// n);
template <typename... Args>
tl::unexpected<Error> Fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error(code, fmt::format(format, std::forward<Args>(args)...)));
}

}  // namespace nibble

#define NIBBLE_CONCAT_INNER(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_INNER(a, b)

// NIBBLE_TRY(expr): return the error of a Status or Result, go on otherwise.
#define NIBBLE_TRY(expr)                                                                          \
  do {                                                                                            \
    auto nibble_status = (expr);                                                                  \
    if (!nibble_status) return tl::unexpected<::nibble::Error>(std::move(nibble_status).error()); \
  } while (false)

// NIBBLE_ASSIGN(auto file, OpenFile(path)): declare or assign the value, or return the error.
#define NIBBLE_ASSIGN(lhs, expr) \
  NIBBLE_ASSIGN_INNER(NIBBLE_CONCAT(nibble_result_, __LINE__), lhs, expr)
#define NIBBLE_ASSIGN_INNER(tmp, lhs, expr)                                 \
  auto tmp = (expr);                                                        \
  if (!tmp) return tl::unexpected<::nibble::Error>(std::move(tmp).error()); \
  lhs = std::move(*tmp)
