// A block of a decoder layer: what reads the residual stream and adds to it. Attention, a
// feed-forward network, experts, a recurrent mixer.
//
// A block owns its weights and its scratch tensors; it knows which entries of ModelInfo's caches
// are its own. One instance per layer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "models/model.h"
#include "models/scratch_arena.h"
#include "models/tensor_parallel.h"
#include "models/weights.h"

namespace nibble::models {

// Largest sizes of a step.
struct StepSizes {
  int64_t t = 0;     // tokens
  int64_t rows = 0;  // rows of logits
  int threads = 1;
  PromptForms prompt_forms;  // ModelInfo's

  // Tokens of a tensor that one op writes and one linear reads (kernels::ActivationLayout).
  int64_t LaidOutTokens(const kernels::OpTable& ops) const;
  // Of a linear of all tokens, whatever their roles.
  size_t LinearWorkspace(const kernels::OpTable& ops, int64_t max_k) const;
};

// Neighbouring rows of a step whose tokens have one role: of a prompt, or generated. The form in
// which they meet weights follows the role alone, never how many rows there are: a token's bits
// stay what they are when it is computed in another step, or anew.
struct RowRun {
  int64_t first = 0;
  int64_t count = 0;
  bool prompt = false;
};

// What a block needs during a step.
struct StepContext {
  const kernels::OpTable& ops;
  const kernels::OpContext& context;
  const Batch& batch;
  const KvPool& kv;
  const TensorParallel& tp;
  int64_t t = 0;
  PromptForms prompt_forms;      // of the model
  std::span<const RowRun> runs;  // of all t rows; empty: all of them generated

  bool has_prompts() const { return !runs.empty(); }
  // out = in (T, K) Wᵀ of a linear whose columns are divided among ranks, summed over them.
  // partial: (T, N) scratch, used with more than one rank alone; then out cannot add.
  void RunReduced(const Linear& linear, const LayerInput& in, float* partial,
                  const LayerOutput& out) const;
  // y (n) = the sum of `partial` over ranks, rounded.
  void Reduce(float* partial, int64_t n, uint16_t* y) const;

  kernels::StateSequences StateSequences() const;
  kernels::DeltaChunks DeltaChunks() const;
  // Parameters of attention over a cache, with the step's sequences; heads and the rest are the
  // block's to set.
  kernels::AttentionParams Attention(const kernels::KvLayerView& cache) const;
};

struct FinishContext {
  const kernels::OpTable& ops;
  ThreadPool* pool = nullptr;
  int64_t max_positions = 0;
  ModelInfo* info = nullptr;  // cache scales are known now
};

class Block {
 public:
  virtual ~Block() = default;

  // Appends what the block keeps per token or per sequence. Called once, before anything else.
  virtual void DescribeCaches(ModelInfo*) {}
  virtual void VisitWeights(WeightVisitor& visitor) = 0;
  // After the weights are there: tables and other derived data.
  virtual Status FinishLoad(const FinishContext&) { return {}; }
  virtual void Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) = 0;
  virtual std::vector<std::string_view> RequiredOps() const = 0;

  // in and out are (T, D), often both the residual stream: read through a norm, added to at the
  // end. With more than one rank out does not add.
  virtual void Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) = 0;
};

}  // namespace nibble::models
