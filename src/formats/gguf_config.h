// What a GGUF file's metadata says about the model: sizes, and the config.json and
// generation_config.json that its Hugging Face folder would have.
//
// Architectures: llama (with Mistral), qwen2, qwen3. Keys that would change the arithmetic in a way
// that config.json cannot express are refused, never ignored. Thread-safety: pure functions.
// Source: llama.cpp's converter, inverted; key names as in transformers' published configs.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "formats/gguf_file.h"

namespace nibble::formats {

using FindGgufTensor = std::function<const GgufTensor*(std::string_view name)>;

struct GgufModel {
  std::string architecture;  // "llama", "qwen2", "qwen3"
  int64_t layers = 0;
  int64_t hidden = 0;        // D
  int64_t intermediate = 0;  // F
  int64_t heads = 0;         // Hq
  int64_t kv_heads = 0;      // Hk
  int64_t head_dim = 0;      // Dh
  int64_t vocab = 0;         // V: rows of the embedding
  // Q and K rows are stored interleaved (row 2i + p of a head is row p Dh/2 + i of Hugging Face).
  bool interleaved_rope = false;
  bool tied = false;  // no output.weight
};

// metadata: the file with the key-value pairs (the first part of a split file).
Result<GgufModel> ReadGgufModel(const GgufFile& metadata, const FindGgufTensor& find);

Result<boost::json::object> MakeGgufConfig(const GgufFile& metadata, const GgufModel& model,
                                           const FindGgufTensor& find);

// eos_token_id joins the file's eos, eot and eom ids and the control tokens that end an answer in
// every published model ("<|im_end|>", "<|eot_id|>", ...), as llama.cpp does.
Result<boost::json::object> MakeGgufGenerationConfig(const GgufFile& metadata);

// The token id under `tokenizer.ggml.<name>_token_id`: -1 when absent; an error outside the
// vocabulary.
Result<int64_t> GgufTokenId(const GgufFile& metadata, std::string_view name);

}  // namespace nibble::formats
