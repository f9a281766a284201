#include "quantize/output_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;

}  // namespace

Status CheckDestination(const std::string& destination, bool replace) {
  std::error_code failed;
  if (fs::exists(destination, failed) && !replace) {
    return Fail(Code::kInvalidArgument, "{}: exists already; --force replaces it", destination);
  }
  return {};
}

Status WriteBeside(const std::string& destination,
                   const std::function<Status(const std::string& folder)>& write) {
  const std::string folder =
      fmt::format("{}.partial", fs::path(destination).lexically_normal().string());
  std::error_code failed;
  fs::remove_all(folder, failed);
  fs::create_directories(folder, failed);
  if (failed)
    return Fail(Code::kUnavailable, "{}: cannot create the folder: {}", folder, failed.message());
  Status done = write(folder);
  if (done) {
    fs::remove_all(destination, failed);
    fs::rename(folder, destination, failed);
    if (failed)
      done = Fail(Code::kUnavailable, "{}: cannot rename to it: {}", destination, failed.message());
  }
  if (!done) fs::remove_all(folder, failed);
  return done;
}

}  // namespace nibble::quantize
