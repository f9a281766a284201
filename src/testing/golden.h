// Where the committed golden files are.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>

#include "testing/source_folder.h"

namespace nibble {

// "formats/modelopt_nvfp4" → its path below tests/golden, or below NIBBLE_GOLDENS on a machine that
// a test binary was copied to.
inline std::string GoldenPath(std::string_view name) {
  const char* const elsewhere = std::getenv("NIBBLE_GOLDENS");
  const std::string root =
      elsewhere != nullptr ? elsewhere : (SourceFolder() / "tests/golden").string();
  return root + "/" + std::string(name);
}

}  // namespace nibble
