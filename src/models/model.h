// The contract of a model: what the engine needs to know and Forward, one step over a batch.
//
// A model is one .cc file (docs/add-a-model.md): its Config read from config.json, its weight
// table, Forward, a tiny config for the generic suite, and its registration. Forward is
// straight-line calls of the ops of kernels/ops.h. Thread-safety: a loaded model is immutable but
// for its activations; Forward is called by the engine thread alone.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "device/buffer.h"
#include "formats/checkpoint.h"
#include "kernels/ops.h"

namespace nibble::models {

// What a model keeps per token and layer.
struct KvSpec {
  int32_t kv_heads = 0;  // Hk
  int32_t head_dim = 0;  // Dh
  int32_t window = 0;    // 0: sees everything
  float k_scale = 1.0f;  // FP8 scales of the checkpoint
  float v_scale = 1.0f;
};

struct ModelInfo {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t vocab_size = 0;    // rows of lm_head: may exceed the tokenizer's
  int64_t hidden_size = 0;
  int64_t max_positions = 0;    // what the config allows
  std::vector<KvSpec> kv;       // one per layer
  int64_t weight_bytes = 0;     // resident
  int64_t bytes_per_token = 0;  // of weights, read for one decoded token at batch 1
  std::string weight_summary;   // "210 nvfp4, 2 bf16": tensors by format, for the start line
};

int64_t KvBytesPerToken(const ModelInfo& info, kernels::KvFormat format);

// The pages of every layer: page p of the pool is page p of each layer's cache. Owned by the
// engine; a page's meaning is the engine's business.
class KvPool {
 public:
  static Result<KvPool> Create(const ModelInfo& info, kernels::KvFormat format, int32_t page_size,
                               int64_t pages);

  kernels::KvLayerView layer(int64_t index) const { return layers_[index]; }
  int64_t pages() const { return pages_; }
  int32_t page_size() const { return page_size_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  // All layers' bytes of one page, for copies, saving and restoring.
  int64_t page_bytes() const { return page_bytes_; }
  void SavePage(int64_t page, std::byte* out) const;
  void LoadPage(int64_t page, const std::byte* in);

 private:
  Buffer memory_;
  std::vector<kernels::KvLayerView> layers_;
  int64_t pages_ = 0;
  int64_t page_bytes_ = 0;
  int32_t page_size_ = 0;
};

// One step: T tokens of B sequences, each a run of consecutive positions. Plain arrays, filled by
// the engine.
struct Batch {
  std::span<const int32_t> tokens;     // (T)
  std::span<const int32_t> positions;  // (T)
  std::span<const int64_t> slots;  // (T): page * page_size + offset, where k and v of the token go
  std::span<const int32_t> q_start;     // (B + 1)
  std::span<const int32_t> kv_len;      // (B): after this step
  std::span<const int32_t> page_table;  // (B, max_pages)
  int64_t max_pages = 0;
  std::span<const int32_t> logits_rows;  // (R): indices into tokens whose logits are wanted
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelInfo& info() const = 0;

  // Memory for activations and op workspaces of a step of at most max_tokens with max_rows logits
  // rows.
  virtual int64_t ActivationBytes(int64_t max_tokens, int64_t max_rows) const = 0;
  // Makes that memory. Called once, before the first Forward.
  virtual Status Prepare(int64_t max_tokens, int64_t max_rows) = 0;

  // Computes the step, writes its k and v into the pool, and the wanted logits rows, (R, V) FP32.
  // Allocates nothing. Returns a pointer that stays valid until the next call.
  virtual const float* Forward(const Batch& batch, const KvPool& kv) = 0;

  virtual const kernels::OpTable& ops() const = 0;
};

class LinearObserver;  // models/weights.h

struct LoadOptions {
  const kernels::OpTable* ops = nullptr;  // null: CpuOps()
  ThreadPool* pool = nullptr;             // required; outlives the model
  kernels::ActivationFormat activations = kernels::ActivationFormat::kBf16;
  int64_t max_positions = 0;           // 0: the config's; else the RoPE tables are this long
  Progress* progress = nullptr;        // advanced by stored bytes
  LinearObserver* observer = nullptr;  // hears every linear's input; outlives the model
};

// Picks the implementation by config.json's "architectures"; kUnsupported lists what exists.
Result<std::unique_ptr<Model>> LoadModel(const formats::Checkpoint& checkpoint,
                                         const LoadOptions& options);

// The same checks and byte counts from names and shapes alone, without reading tensor data: for
// `inspect` and the memory plan.
Result<ModelInfo> DescribeModel(const formats::Checkpoint& checkpoint);

}  // namespace nibble::models
