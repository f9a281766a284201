// A GGUF file (v2, v3) as a Checkpoint: an import source that looks like a Hugging Face folder.
//
// Tensors get their Hugging Face names, row-major shapes and row order (llama's Q and K rows are
// un-permuted). F32, F16 and BF16 are views of the mapping unless rows move; block types that no
// kernel reads (Q8_0, Q4_x, Q5_x, K-quants) are dequantised on Read in FP32 and rounded to BF16.
// MXFP4 and NVFP4 are re-packed without loss: `X.weight_packed` + `X.weight_scale`, and `X.weight`
// + `X.weight_scale` + `X.weight_scale_2` [+ `X.input_scale`]. config.json, tokenizer.json,
// tokenizer_config.json and generation_config.json are made from the metadata.
//
// Architectures: llama (Mistral too), qwen2, qwen3. Errors name file, key or tensor, value and what
// was expected. Thread-safety: as Checkpoint. Source: ggml's gguf.cpp and llama.cpp's converter.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gguf_file.h"

namespace nibble::formats {

// path: a .gguf file; of a split file ("...-00001-of-00003.gguf") any part.
Result<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path);

// The same over parsed files: all parts in order, metadata in the first. path: for messages.
Result<std::unique_ptr<Checkpoint>> ImportGguf(std::vector<std::shared_ptr<const GgufFile>> parts,
                                               const std::string& path);

}  // namespace nibble::formats
