// The pre-norm decoder that Llama, Mistral, Qwen2 and Qwen3 share: x += attention(norm(x)); x +=
// ffn(norm(x)). A family's file reads its config into a DenseDecoderConfig; what differs between
// families is data.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "models/layers/attention.h"
#include "models/layers/ffn.h"
#include "models/layers/rope.h"
#include "models/registry.h"

namespace nibble::models {

struct DenseDecoderConfig {
  std::string architecture;
  int64_t layers = 0;
  int64_t ffn_size = 0;  // F
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  bool tied_embeddings = false;
  float norm_eps = 1e-6f;
  AttentionConfig attention;          // of every layer, but for the window
  std::vector<int32_t> layer_window;  // one per layer, 0: none
  RopeConfig rope;
};

// What a class of transformers takes where its config is silent.
struct ClassDefaults {
  double rope_theta = 10000.0;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
};

// The fields that all four families share, with the checks that span them.
DenseDecoderConfig ReadDenseDecoderConfig(ConfigReader& config, std::string architecture,
                                          const ClassDefaults& defaults);

// Qwen's windows: use_sliding_window switches them on; layer_types says where, or max_window_layers
// from which layer on.
void ReadQwenWindows(ConfigReader& config, DenseDecoderConfig* c);

class DenseDecoder final : public LoadableModel {
 public:
  explicit DenseDecoder(DenseDecoderConfig config);

  const ModelInfo& info() const override { return info_; }
  ModelInfo& mutable_info() override { return info_; }
  int64_t ActivationBytes(int64_t max_tokens, int64_t max_rows) const override;
  Status Prepare(int64_t max_tokens, int64_t max_rows) override;
  const float* Forward(const Batch& batch, const KvPool& kv) override;
  const kernels::OpTable& ops() const override { return *ops_; }

  void VisitWeights(WeightVisitor& visitor) override;
  std::vector<std::string_view> RequiredOps() const override;
  Status FinishLoad(const kernels::OpTable& ops, ThreadPool* pool, int64_t max_positions) override;

 private:
  struct Layer {
    std::vector<float> attention_norm;  // (D)
    Attention attention;
    std::vector<float> ffn_norm;  // (D)
    GatedFfn ffn;
  };

  ActivationSizes Sizes(int64_t max_tokens, int64_t max_rows) const;

  const DenseDecoderConfig config_;
  ModelInfo info_;

  Linear embedding_;  // (V, D)
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;  // (D)
  Linear head_;                    // (V, D); empty when tied to the embedding
  RopeTable rope_;

  const kernels::OpTable* ops_ = nullptr;
  ThreadPool* pool_ = nullptr;
  Activations activations_;
};

}  // namespace nibble::models
