#include "base/error.h"

namespace nibble {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "invalid argument";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kUnauthenticated:
      return "unauthenticated";
    case Code::kNotFound:
      return "not found";
    case Code::kTooLarge:
      return "too large";
    case Code::kCancelled:
      return "cancelled";
    case Code::kCorruption:
      return "corrupt data";
    case Code::kInternal:
      return "internal error";
    case Code::kResourceExhausted:
      return "resource exhausted";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kDeadline:
      return "deadline exceeded";
  }
  return "unknown";
}

}  // namespace nibble
