// The decoder that every family here is an instance of: embedding, a list of blocks around the
// residual stream, final norm, head. A family's file reads its config, makes the blocks and hands
// them over; what differs between families is data and the blocks themselves.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/layers/attention.h"
#include "models/layers/block.h"
#include "models/layers/ffn.h"
#include "models/registry.h"
#include "models/step_graphs.h"
#include "models/step_inputs.h"

namespace nibble::models {

struct DecoderConfig {
  std::string architecture;
  int64_t layers = 0;
  int64_t hidden_size = 0;  // D
  int64_t vocab_size = 0;   // V
  int64_t max_positions = 0;
  bool tied_embeddings = false;
  float norm_eps = 1e-6f;
  kernels::NormStyle norm_style = kernels::NormStyle::kRoundThenScale;
  float embedding_scale = 1.0f;
  std::string embedding_name = "model.embed_tokens.weight";
  std::string final_norm_name = "model.norm.weight";
  std::vector<std::string> ignored;           // ends of names that the model knows and does not use
  std::vector<std::string> ignored_prefixes;  // starts of such names
};

// x += post_norm(block(norm(x))); without a post_norm name, x += block(norm(x)).
struct Sublayer {
  std::string norm;  // name of its weight
  std::unique_ptr<Block> block;
  std::string post_norm;
};

// What an MTP module adds: x = projection [norm(embedding of a token), norm(hidden state before
// it)], a few blocks around that x as residual stream, and a final norm, whose output goes to the
// model's head and is the hidden state that a further draft continues from: in DeepSeek's module
// what lies before that norm is.
struct DraftHead {
  std::string embedding_norm;  // names of weights: "mtp.pre_fc_norm_embedding.weight"
  std::string hidden_norm;
  std::string projection;  // (D, 2D), without ".weight"
  std::vector<Sublayer> sublayers;
  std::string final_norm;
  bool continues_before_norm = false;
};

class Decoder final : public LoadableModel {
 public:
  Decoder(DecoderConfig config, std::vector<Sublayer> sublayers, const BuildOptions& options,
          std::optional<DraftHead> draft = {});

  const ModelInfo& info() const override { return info_; }
  ModelInfo& mutable_info() override { return info_; }
  int64_t ActivationBytes(const MaxStep& max) const override;
  Status Prepare(const MaxStep& max) override;
  const float* Forward(const Batch& batch, const KvPool& kv) override;
  bool has_draft() const override { return draft_.has_value(); }
  const uint16_t* hidden() const override { return hidden_; }
  const float* ForwardDraft(const Batch& batch, const uint16_t* hidden, const KvPool& kv) override;
  const kernels::OpTable& ops() const override { return *ops_; }

  void VisitWeights(WeightVisitor& visitor) override;
  std::vector<std::string_view> RequiredOps() const override;
  Status FinishLoad(const kernels::OpTable& ops, ThreadPool* pool, int64_t max_positions) override;
  std::string draft_tensor() const override { return draft_ ? draft_->final_norm : ""; }

 private:
  struct Norms {
    Resident<float> before;  // (D)
    Resident<float> after;   // (D) or empty
  };
  // Blocks around a residual stream, and the norm behind them.
  struct Stack {
    std::vector<Sublayer> sublayers;
    std::vector<Norms> norms;    // one per sublayer
    Resident<float> final_norm;  // (D)

    explicit Stack(std::vector<Sublayer> blocks)
        : sublayers(std::move(blocks)), norms(sublayers.size()) {}
    void VisitSublayers(WeightVisitor& visitor, int64_t d);
  };
  struct Draft : DraftHead {
    Stack stack;
    Resident<float> embedding_norm_weight;  // (D)
    Resident<float> hidden_norm_weight;     // (D)
    Linear projection_weight;               // (D, 2D)

    explicit Draft(DraftHead head)
        : DraftHead(std::move(head)), stack(std::move(this->DraftHead::sublayers)) {}
  };

  void VisitDraft(WeightVisitor& visitor);
  std::vector<const Sublayer*> AllSublayers() const;  // the draft head's last
  StepContext Step(const Batch& batch, const KvPool& kv) const;
  // Fills runs_: empty where no token of the step is of a prompt in NVFP4.
  void FindRuns(const Batch& batch);
  void Embed(const Batch& batch, uint16_t* out) const;
  // The blocks of a stack, from and to the residual stream x_, and the logits of the wanted rows.
  const float* RunStack(const StepContext& step, const Stack& stack);
  void Carve(ScratchArena& arena, const MaxStep& max);
  void Normalize(uint16_t* x, const uint16_t* delta, const Resident<float>& weight, int64_t t,
                 uint16_t* out) const;
  // x + delta through a norm: by whoever reads it, if there is nothing to add first.
  LayerInput Normed(uint16_t* x, const uint16_t* delta, const Resident<float>& weight,
                    int64_t t) const;
  // Whether the sublayer's block may add to the residual stream itself.
  bool AddsItself(const Sublayer& sublayer) const;
  // Logits of rows (R, D), gathered from all ranks.
  void RunHead(const StepContext& step, const LayerInput& in, int64_t rows);
  int64_t VocabShare() const;  // rows of the head on a rank; the last one may have fewer

  const DecoderConfig config_;
  const BuildOptions options_;
  ModelInfo info_;

  Linear embedding_;  // (V, D)
  Stack stack_;
  Linear head_;  // (V of this rank, D); empty when tied to the embedding
  std::optional<Draft> draft_;

  const kernels::OpTable* ops_ = nullptr;
  ThreadPool* pool_ = nullptr;
  kernels::OpContext context_;
  StepInputs inputs_;
  StepGraphs graphs_;
  std::vector<RowRun> runs_;
  Buffer memory_;
  uint16_t* x_ = nullptr;       // (T, D) residual stream
  uint16_t* normed_ = nullptr;  // (max(T, R), D)
  // Of blocks that do not add to x_ themselves:
  uint16_t* delta_ = nullptr;       // (T, D) what is to be added
  uint16_t* post_delta_ = nullptr;  // (T, D) the same after its norm
  // With a draft head:
  uint16_t* hidden_ = nullptr;       // (T, D) behind the final norm
  uint16_t* pair_ = nullptr;         // (2, max T, D) normed embeddings, then normed hidden states
  uint16_t* interleaved_ = nullptr;  // (T, 2D)
  int32_t* pair_rows_ = nullptr;     // (2 max T) rows of pair_ in the order of interleaved_
  int64_t pair_distance_ = 0;        // max T
  uint16_t* row_x_ = nullptr;        // (R, D)
  uint16_t* row_delta_ = nullptr;    // (R, D)
  float* shard_logits_ = nullptr;    // (R, V of this rank)
  float* gathered_ = nullptr;        // (ranks, R, V of a rank)
  float* logits_ = nullptr;          // (R, V)
};

// ---- What most families' configs share

// Far beyond any published model; keeps products of sizes inside int64.
inline constexpr int64_t kMaxSize = int64_t{1} << 24;
inline constexpr int64_t kMaxLayers = 4096;

// num_hidden_layers, hidden_size, vocab_size, max_position_embeddings, tie_word_embeddings,
// rms_norm_eps.
DecoderConfig ReadDecoderConfig(ConfigReader& config, std::string architecture);

// num_attention_heads, num_key_value_heads, head_dim, with the checks that span them; rope is left
// to the family. default_head_dim 0: hidden_size / num_attention_heads.
AttentionConfig ReadAttentionConfig(ConfigReader& config, const DecoderConfig& decoder,
                                    int64_t default_head_dim = 0);

// intermediate_size, hidden_act (silu).
FeedForwardConfig ReadFeedForwardConfig(ConfigReader& config, const DecoderConfig& decoder);

// Pre-norm layers with Llama's names: input_layernorm, then what `attention` makes,
// post_attention_layernorm, then what `feed_forward` makes. Both get the layer's number and prefix,
// "model.layers.3".
using MakeBlock = std::function<std::unique_ptr<Block>(int64_t layer, const std::string& prefix)>;
std::vector<Sublayer> MakePreNormLayers(const DecoderConfig& decoder, const MakeBlock& attention,
                                        const MakeBlock& feed_forward);

// The pre-norm layers that Llama, Mistral, Qwen2 and Qwen3 share. layer_window: one per layer.
struct DenseLayers {
  AttentionConfig attention;
  std::vector<int32_t> layer_window;
  FeedForwardConfig ffn;
};
std::vector<Sublayer> MakeDenseLayers(const DecoderConfig& decoder, const DenseLayers& layers,
                                      const BuildOptions& options);

// Where layer_types says "sliding_attention" the window, else 0. Empty if the config names no
// types.
std::vector<int32_t> ReadLayerWindows(ConfigReader& config, int64_t layers, int32_t window);

// Starts of the names that multimodal wrappers give to what a text model does not need.
std::vector<std::string> VisionPrefixes();

// Qwen's windows: use_sliding_window switches them on; layer_types says where, or max_window_layers
// from which layer on. One per layer, 0: none.
std::vector<int32_t> ReadQwenWindows(ConfigReader& config, int64_t layers);

// What divides among ranks: heads and ffn rows.
Status CheckShares(const TensorParallel& tp, const AttentionConfig& attention, int64_t ffn_size);

}  // namespace nibble::models
