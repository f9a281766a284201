#include "testing/source_folder.h"

#include <cstdlib>

namespace nibble {

std::filesystem::path SourceFolder() { return NIBBLE_SOURCE_DIR; }

std::filesystem::path SharedFolder() {
  const char* const shared = std::getenv("NIBBLE_SHARED");
  return shared != nullptr ? std::filesystem::path(shared)
                           : SourceFolder().parent_path() / "shared";
}

}  // namespace nibble
