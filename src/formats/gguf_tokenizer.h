// tokenizer.json and tokenizer_config.json made from a GGUF file's metadata.
//
// Byte-level BPE (`tokenizer.ggml.model` gpt2): `.pre` names the family, and each known name gets
// the pre-tokenizer and normalizer of that family's published tokenizer.json; an unknown name is an
// error. SentencePiece BPE (llama): byte fallback, merges recovered from the scores in the order of
// transformers' converter, the dummy-prefix normalizer of Llama 2's published file.
// Control, unknown and user-defined tokens become added tokens; the first two are special.
// Thread-safety: pure functions.
#pragma once

#include <boost/json.hpp>

#include "base/error.h"
#include "formats/gguf_file.h"

namespace nibble::formats {

// tokenizer.json.
Result<boost::json::object> MakeGgufTokenizer(const GgufFile& metadata);
// tokenizer_config.json.
Result<boost::json::object> MakeGgufTokenizerConfig(const GgufFile& metadata);

}  // namespace nibble::formats
