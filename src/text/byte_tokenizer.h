// A tokenizer for checkpoints that have none: one token per byte. Thread-safety: pure.
#pragma once

#include <string>

namespace nibble::text {

// tokenizer.json of a byte-level vocabulary without merges: id b is the byte b.
std::string ByteTokenizerJson();

}  // namespace nibble::text
