// Which Hugging Face tensors a GGUF file holds, and how each is read.
//
// Names and shapes follow llama.cpp's converter, inverted. Everything is checked here, before any
// tensor data: a tensor without a place in the architecture or with another shape is an error.
// Thread-safety: pure functions over immutable files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gguf_config.h"
#include "formats/gguf_file.h"

namespace nibble::formats {

// Where a tensor's bytes come from. All pointers are into the files.
struct GgufSource {
  enum class Kind {
    kStored,       // as in the file (rows may move)
    kDequantized,  // block type to BF16, times *scale where there is one
    kCodes,        // E2M1 pairs of MXFP4 or NVFP4
    kScales,       // block scales of MXFP4 or NVFP4
    kOne,          // the FP32 scalar 1: NVFP4's tensor scale where the file omits it
  };
  Kind kind = Kind::kStored;
  const GgufTensor* tensor = nullptr;
  const GgufTensor* scale = nullptr;
  int64_t interleaved_heads = 0;  // above 0: rows are interleaved within so many heads
};

struct GgufEntry {
  TensorEntry entry;
  GgufSource source;
};

// All tensors of the files, sorted by Hugging Face name. file_name: for messages.
Result<std::vector<GgufEntry>> MapGgufTensors(const std::vector<const GgufTensor*>& tensors,
                                              const GgufModel& model, const FindGgufTensor& find,
                                              const std::string& file_name);

// Bytes of one tensor; `owner` keeps the file's mapping alive.
Result<TensorData> ReadGgufTensor(const TensorEntry& entry, const GgufSource& source,
                                  const std::shared_ptr<const void>& owner);

}  // namespace nibble::formats
