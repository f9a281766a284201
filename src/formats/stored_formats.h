// Which weight formats a checkpoint holds, and whether they agree with what config and flag say.
//
// What is stored decides. A weight stored wider than the config says loads, with one summary line;
// an error is only: a flag that names another format than the stored weights, and a config that
// names a format of which no weight exists. (Missing companions and shapes that cannot fit are
// ReadLinear's.)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

struct StoredFormat {
  // "nvfp4", "mxfp4", "fp8", "mxfp8", "awq", "gptq", "int" (other integers), "bf16", "f16", "f32"
  std::string kind;
  int64_t weights = 0;
  int64_t bytes = 0;    // with scales
  std::string example;  // stored name of one weight
};

// Weights are matrices (stacked experts too), embeddings among them; norms and biases are not
// counted. By dtype and companion alone; ordered by bytes, largest first.
std::vector<StoredFormat> CountStoredFormats(const Checkpoint& checkpoint);

// flag: the value of --quantization, "" if not given. Logs the summary line.
Status CheckStoredFormats(const Checkpoint& checkpoint, std::string_view flag);

// "nvfp4, modelopt, ...": what --quantization accepts.
std::string KnownQuantizationNames();

}  // namespace nibble::formats
