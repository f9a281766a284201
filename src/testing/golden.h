// Where the committed golden files are.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// "formats/modelopt_nvfp4" → its path below tests/golden.
inline std::string GoldenPath(std::string_view name) {
  return std::string(NIBBLE_SOURCE_DIR "/tests/golden/") + std::string(name);
}

}  // namespace nibble
