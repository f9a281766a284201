// Where the sources are that a test was built from.
#pragma once

#include <filesystem>

namespace nibble {

// The repository's root. Told to one file alone, so that objects of tests are the same in every
// copy of the repository and compiler caches find them.
std::filesystem::path SourceFolder();

// Published files that are not committed: NIBBLE_SHARED or `shared` beside the repository.
std::filesystem::path SharedFolder();

}  // namespace nibble
