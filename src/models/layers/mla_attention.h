// Multi-head latent attention (DeepSeek-V2, V3, Kimi-K2): keys and values of all heads are linear
// functions of one latent row per token, which is all that the cache holds, beside a rotated key
// that the heads share.
//
// Absorbed form, for decoding and prefill alike. With kv_b_proj's rows of a head split into Wk
// (N, R) and Wv (V, R), a query q = [q_nope | q_rope] meets token t's latent c_t and key k_rope_t
// as
//
//   q' = Wkᵀ q_nope;  score = scale (q' · c_t + q_rope · k_rope_t);  o = Wv Σ p_t c_t
//
// so a step is grouped-query attention with one KV head of R + P numbers. One form, so that no bit
// depends on how a prompt is cut into steps. Its price: 2R + 2P multiply-adds per head, query and
// key (1152 of DeepSeek-V3), where expanded keys and values would take N + P + V (320) and the
// expansion; long prompts pay it, decoding gains, as it reads R + P numbers per token in place of
// heads * (N + P + V).
//
// Wk is held transposed, which no re-ordering of codes can give: it is dequantised to BF16.
// Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1; transformers' DeepseekV3Attention.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/layers/block.h"
#include "models/layers/rope.h"

namespace nibble::models {

struct MlaConfig {
  int64_t hidden_size = 0;  // D
  int32_t heads = 0;        // H
  int64_t q_rank = 0;       // Rq; 0: one q_proj in place of q_a, its norm and q_b
  int64_t kv_rank = 0;      // R
  int64_t nope_dim = 0;     // N
  int64_t rope_dim = 0;     // P
  int64_t v_dim = 0;        // V
  double scale = 0.0;       // of the scores
  std::shared_ptr<Rope> rope;
  kernels::RopePairs pairs = kernels::RopePairs::kNeighbours;
  Bias bias = Bias::kNone;  // of q_a, kv_a and o
  float norm_eps = 1e-6f;   // of q_a's and the latent's norm

  int64_t q_head_dim() const { return nope_dim + rope_dim; }
  int64_t cache_dim() const { return kv_rank + rope_dim; }
};

class MlaAttention final : public Block {
 public:
  // prefix: "model.layers.0.self_attn".
  MlaAttention(MlaConfig config, std::string prefix, const TensorParallel& tp);

  void DescribeCaches(ModelInfo* info) override;
  void VisitWeights(WeightVisitor& visitor) override;
  Status FinishLoad(const FinishContext& context) override;
  void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) override;
  std::vector<std::string_view> RequiredOps() const override;
  void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) override;

 private:
  void VisitQueries(WeightVisitor& visitor);
  void VisitLatent(WeightVisitor& visitor);
  void RunQueries(const StepContext& step, const LayerInput& in);
  void ObserveLatents(const StepContext& step) const;

  const MlaConfig config_;
  const std::string prefix_;
  const TensorParallel tp_;
  const RowRange share_;  // heads of this rank
  int64_t cache_ = 0;     // index into ModelInfo.kv

  Linear q_a_;                                                 // (Rq, D); empty without q_rank
  Resident<float> q_norm_;                                     // (Rq)
  Linear q_b_;                                                 // (H * (N + P), Rq or D)
  Linear kv_a_;                                                // (R + P, D)
  Resident<float> kv_norm_;                                    // (R)
  std::vector<Linear> key_heads_;                              // H times (R, N): Wkᵀ
  std::vector<Linear> value_heads_;                            // H times (V, R)
  std::vector<const kernels::PackedWeight*> keys_;             // of key_heads_
  std::vector<const kernels::PackedWeight*> values_;           // of value_heads_
  std::unique_ptr<kernels::PreparedWeights> prepared_keys_;    // of keys_
  std::unique_ptr<kernels::PreparedWeights> prepared_values_;  // of values_
  Linear output_;                                              // (D, H * V)
  float cache_scale_ = 1.0f;

  uint16_t* q_latent_ = nullptr;   // (T, Rq)
  uint16_t* q_ = nullptr;          // (T, H, N + P)
  uint16_t* kv_ = nullptr;         // (T, R + P)
  uint16_t* absorbed_ = nullptr;   // (T, H, R + P)
  uint16_t* attention_ = nullptr;  // (T, H, R + P): the last P of a head mean nothing
  uint16_t* heads_ = nullptr;      // (T, H, V)
  float* partial_ = nullptr;       // (T, D)
};

// DeepSeek's fields: ranks and dims of heads, q_lora_rank, rope and its scale, rope_interleave,
// attention_bias.
MlaConfig ReadMlaConfig(ConfigReader& config, int64_t hidden_size, int64_t max_positions);

}  // namespace nibble::models
