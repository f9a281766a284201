// Memory of the host before it is written for the first time.
#pragma once

#include <cstddef>

namespace nibble {

// Asks the system for the pages of [memory, memory + bytes) now, for reading and writing; what they
// hold stays. Where the system cannot, they come when they are touched. From any thread.
void PopulateMemory(std::byte* memory, size_t bytes);

}  // namespace nibble
