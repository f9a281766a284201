// Grouped-query attention with rotary positions over the paged cache: Llama, Mistral, Qwen2, Qwen3.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/layers/activations.h"
#include "models/layers/rope.h"
#include "models/model.h"
#include "models/weights.h"

namespace nibble::models {

struct AttentionConfig {
  int64_t hidden_size = 0;  // D
  int32_t q_heads = 0;      // Hq
  int32_t kv_heads = 0;     // Hk
  int32_t head_dim = 0;     // Dh
  int32_t window = 0;       // 0: none
  Bias qkv_bias = Bias::kNone;
  Bias output_bias = Bias::kNone;
  bool qk_norm = false;  // RMS norm per head, before the rotation
  float norm_eps = 1e-6f;

  int64_t qkv_rows() const { return int64_t{q_heads + 2 * kv_heads} * head_dim; }
  int64_t attention_width() const { return int64_t{q_heads} * head_dim; }
};

class Attention {
 public:
  // prefix: "model.layers.0.self_attn".
  void VisitWeights(WeightVisitor& visitor, const std::string& prefix,
                    const AttentionConfig& config);

  // a.normed (T, D) → a.delta (T, D); writes this step's k and v into the cache.
  void Forward(const kernels::OpTable& ops, const Batch& batch, const kernels::KvLayerView& cache,
               const RopeTable& rope, const AttentionConfig& config, Activations& a) const;

  float k_scale() const { return k_scale_; }
  float v_scale() const { return v_scale_; }

 private:
  Linear qkv_;                 // ((Hq + 2 Hk) * Dh, D)
  Linear output_;              // (D, Hq * Dh)
  std::vector<float> q_norm_;  // (Dh)
  std::vector<float> k_norm_;  // (Dh)
  float k_scale_ = 1.0f;
  float v_scale_ = 1.0f;
};

}  // namespace nibble::models
