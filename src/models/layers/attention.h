// Grouped-query attention with rotary positions over the paged cache: what Llama, Qwen, Mistral,
// gpt-oss and most others share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/layers/block.h"
#include "models/layers/query_scale.h"
#include "models/layers/rope.h"

namespace nibble::models {

struct AttentionConfig {
  int64_t hidden_size = 0;     // D
  int32_t q_heads = 0;         // Hq
  int32_t kv_heads = 0;        // Hk
  int32_t head_dim = 0;        // Dh
  double scale = 0.0;          // 0: 1/√Dh
  int32_t window = 0;          // 0: none
  int32_t chunk = 0;           // 0: none
  std::shared_ptr<Rope> rope;  // null: no positions (NoPE)
  kernels::RopePairs pairs = kernels::RopePairs::kHalves;
  std::shared_ptr<QueryScale> query_scale;  // null: none. Not with LongRoPE.
  Bias qkv_bias = Bias::kNone;
  Bias output_bias = Bias::kNone;
  bool qk_norm = false;         // RMS norm per head
  bool qk_norm_weights = true;  // else the norm's weights are ones and not stored
  kernels::NormStyle norm_style = kernels::NormStyle::kRoundThenScale;
  bool norm_after_rotation = false;
  float norm_eps = 1e-6f;
  bool fused_qkv = false;    // stored as one "qkv_proj", rows q, k, v
  bool output_gate = false;  // q_proj holds [query | gate] per head; out *= σ(gate)
  bool sinks = false;        // one more logit per head: "sinks" (Hq)

  int64_t q_width() const { return int64_t{q_heads} * head_dim; }
  int64_t kv_width() const { return int64_t{kv_heads} * head_dim; }
};

class Attention final : public Block {
 public:
  // prefix: "model.layers.0.self_attn".
  Attention(AttentionConfig config, std::string prefix, const TensorParallel& tp);

  void DescribeCaches(ModelInfo* info) override;
  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override;
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  std::vector<LinearPart> QkvParts() const;
  // (T) rows of the rope's table and of the query scales.

  const AttentionConfig config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange q_share_;   // heads of this rank
  const RowRange kv_share_;  // heads of this rank
  int64_t cache_ = 0;        // index into ModelInfo.kv

  Linear qkv_;              // (q, k, v and gate rows of this rank, D)
  Linear output_;           // (D, Hq * Dh of this rank)
  Resident<float> q_norm_;  // (Dh)
  Resident<float> k_norm_;  // (Dh)
  Resident<float> sinks_;   // (Hq of this rank)
  float k_scale_ = 1.0f;
  float v_scale_ = 1.0f;

  uint16_t* qkv_out_ = nullptr;    // (T, qkv_.n)
  uint16_t* q_ = nullptr;          // (T, Hq, Dh)
  uint16_t* attention_ = nullptr;  // (T, Hq, Dh), as output_ reads it best
  float* partial_ = nullptr;       // (T, D)
};

}  // namespace nibble::models
