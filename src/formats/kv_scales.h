// Scales of a quantised KV cache as checkpoints carry them: stored = x / scale, read = stored *
// scale. One per layer, or one per KV head.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

struct KvScales {
  std::vector<float> k = {1.0f};  // [1] or [Hk]
  std::vector<float> v = {1.0f};
  std::vector<std::string> tensors;  // stored names that were used
};

// attention: "model.layers.0.self_attn". Names of ModelOpt (k_proj.k_scale, v_proj.v_scale),
// compressed-tensors (k_scale, v_scale) and of older exports (attn.k_scale, qkv_proj.k_scale,
// kv_scale for both). Missing scales are 1. Scales must be finite and > 0.
Result<KvScales> ReadKvScales(const Checkpoint& checkpoint, std::string_view attention);

}  // namespace nibble::formats
