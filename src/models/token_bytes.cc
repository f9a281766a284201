#include "models/token_bytes.h"

#include <algorithm>

#include "formats/quantization_config.h"

namespace nibble::models {

Result<kernels::KvFormat> ConfiguredKvFormat(const formats::Checkpoint& checkpoint) {
  NIBBLE_ASSIGN(const formats::QuantizationConfig config,
                formats::ReadQuantizationConfig(checkpoint));
  return config.kv_cache == "fp8" ? kernels::KvFormat::kFp8 : kernels::KvFormat::kBf16;
}

TokenBytes CountTokenBytes(const ModelInfo& info, kernels::KvFormat format, int64_t context) {
  TokenBytes bytes{.weights = info.sections};
  for (const KvSpec& layer : info.kv) {
    const int64_t seen = layer.window > 0 ? std::min<int64_t>(layer.window, context) : context;
    bytes.kv += kernels::KvBytes(format, layer.elements()) * seen;
  }
  bytes.state = 2 * StateBytes(info);
  return bytes;
}

}  // namespace nibble::models
