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
#include "base/thread_pool.h"
#include "device/buffer.h"
#include "formats/checkpoint.h"
#include "kernels/ops.h"
#include "models/tensor_parallel.h"
#include "models/weights.h"

namespace nibble::models {

// What an attention layer keeps per token.
struct KvSpec {
  int32_t kv_heads = 0;    // Hk
  int32_t head_dim = 0;    // Dh
  int32_t window = 0;      // no token sees farther back; 0: sees everything
  bool shared_kv = false;  // MLA: one latent row is key and value
  float k_scale = 1.0f;    // FP8 scales of the checkpoint
  float v_scale = 1.0f;

  int64_t elements() const { return int64_t{shared_kv ? 1 : 2} * kv_heads * head_dim; }
};

// What a recurrent layer keeps per sequence, in bytes.
struct StateSpec {
  int64_t conv = 0;
  int64_t recurrent = 0;
  bool chunks = false;  // prompts may be taken in chunks (kernels::DeltaChunks)
};

// Bytes of weights read for one decoded token at batch 1, by what they belong to; experts count
// with the share that a token uses.
struct SectionBytes {
  int64_t bytes[kSections] = {};
  int64_t& operator[](Section section) { return bytes[static_cast<int>(section)]; }
  int64_t operator[](Section section) const { return bytes[static_cast<int>(section)]; }
  int64_t total() const;  // without the draft head's
};

// What a layer of experts reads of a step's tokens: as many experts as these hit.
struct ExpertLayer {
  int32_t experts = 0;  // E
  int32_t top_k = 0;
  uint32_t even_salt = 0;  // kernels::Routing.even_salt
};

// In which other forms than 16 bits tokens of prompts meet weights.
struct PromptForms {
  bool w4a4 = false;
  bool fp8 = false;

  bool any() const { return w4a4 || fp8; }
};

struct ModelInfo {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t vocab_size = 0;    // rows of lm_head: may exceed the tokenizer's
  int64_t hidden_size = 0;
  int64_t max_positions = 0;  // what the config allows
  int64_t layers = 0;
  std::vector<KvSpec> kv;        // one per attention layer
  std::vector<StateSpec> state;  // one per recurrent layer
  int64_t weight_bytes = 0;      // resident
  int64_t bytes_per_token = 0;   // of weights: sections.total()
  SectionBytes sections;
  int64_t parameters = 0;
  int64_t active_parameters = 0;  // used by one token; the embedding counts as one row
  // LongRoPE: a sequence longer than this uses other frequencies than a shorter one, so its cache
  // must be computed anew when it crosses. 0: no such border.
  int64_t rope_border = 0;
  int64_t rope_long_rows = 0;  // where the rope table's rows for longer sequences begin
  // Tokens of prompts (Batch.prompt_tokens) meet some weights with other bits than generated ones:
  // NVFP4 weights as NVFP4, FP8 weights as E4M3.
  PromptForms prompt_forms;
  std::vector<ExpertLayer> expert_layers;
  std::vector<std::string> left_over;  // DescribeModel: tensors that the model does not know
  std::string weight_summary;          // "210 nvfp4, 2 bf16": tensors by format, for the start line
};

int64_t KvBytesPerToken(const ModelInfo& info, kernels::KvFormat format);
// Of all recurrent layers, per sequence.
int64_t StateBytes(const ModelInfo& info);
// Prompts advance by whole chunks of so many positions, from 0 on; 1: by any number.
int64_t PromptChunk(const ModelInfo& info, const kernels::OpTable& ops);

// One recurrent layer's states, over all slots.
struct StateLayer {
  kernels::StateView conv;
  kernels::StateView recurrent;
};

// What sequences keep between steps: the pages of every attention layer (page p of the pool is page
// p of each layer's cache) and the state slots of every recurrent one. Owned by the engine; what a
// page or a slot means is the engine's business.
class KvPool {
 public:
  static Result<KvPool> Create(const ModelInfo& info, kernels::KvFormat format, int32_t page_size,
                               int64_t pages, int64_t state_slots = 0,
                               Device& device = HostDevice());

  // index into ModelInfo.kv and ModelInfo.state.
  kernels::KvLayerView layer(int64_t index) const { return layers_[index]; }
  StateLayer state(int64_t index) const { return states_[index]; }
  uint64_t id() const { return id_; }  // of all pools of the process
  int64_t pages() const { return pages_; }
  int32_t page_size() const { return page_size_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  // All layers' bytes of one page, for copies, saving and restoring.
  int64_t page_bytes() const { return page_bytes_; }
  void SavePage(int64_t page, std::byte* out) const;
  void LoadPage(int64_t page, const std::byte* in);

  // Every layer's keys, and its values where they are other memory: pages() pages one after the
  // other.
  struct Part {
    std::byte* begin = nullptr;
    int64_t page_bytes = 0;
  };
  std::span<const Part> parts() const { return parts_; }

  // All recurrent layers' bytes of one slot.
  int64_t state_slots() const { return state_slots_; }
  int64_t state_bytes() const { return state_bytes_; }
  void CopyState(int64_t from, int64_t to);
  void SaveState(int64_t slot, std::byte* out) const;
  void LoadState(int64_t slot, const std::byte* in);

 private:
  std::byte* StateSlot(int64_t slot) const { return state_base_ + slot * state_bytes_; }

  uint64_t id_ = 0;
  Device* device_ = nullptr;
  Buffer memory_;
  std::vector<StateLayer> states_;
  std::byte* state_base_ = nullptr;  // (slots, state_bytes)
  int64_t state_slots_ = 0;
  int64_t state_bytes_ = 0;
  std::vector<kernels::KvLayerView> layers_;
  std::vector<Part> parts_;
  int64_t pages_ = 0;
  int64_t page_bytes_ = 0;
  int32_t page_size_ = 0;
};

// What a caller launches behind a step's logits and wants recorded with the step.
class StepTail {
 public:
  virtual ~StepTail() = default;
  // drawn_slots: Batch.drawn_slots on the model's device. Not called for a recorded step.
  virtual void Launch(const float* logits, const int32_t* drawn_slots) = 0;
  // Tails with one key launch the same behind steps of one shape.
  virtual const void* key() const = 0;
};

// One step: T tokens of B sequences, each a run of consecutive positions. Plain arrays, filled by
// the engine.
struct Batch {
  std::span<const int32_t> tokens;     // (T); -1 - s: what drawn[s] holds when the step runs
  std::span<const int32_t> positions;  // (T)
  std::span<const int64_t> slots;  // (T): page * page_size + offset, where k and v of the token go
  std::span<const int32_t> q_start;     // (B + 1)
  std::span<const int32_t> kv_len;      // (B): after this step
  std::span<const int32_t> page_table;  // (B, max_pages)
  int64_t max_pages = 0;
  std::span<const int32_t> logits_rows;  // (R): indices into tokens whose logits are wanted
  bool all_rows = false;                 // they are 0, 1, ... T - 1; models find it out themselves
  // (B): a slot of the pool per sequence; empty for models without recurrent layers.
  std::span<const int32_t> state_slots;
  // (B) or empty: leading tokens of each sequence that are taken in chunks, as
  // kernels::DeltaChunks has it, and its totals.
  std::span<const int32_t> chunked;
  int64_t chunked_sequences = 0;
  int64_t chunked_tokens = 0;
  // (B) or empty: leading tokens of each sequence that belong to its prompt, of models with
  // ModelInfo.prompt_forms. Empty: none do.
  std::span<const int32_t> prompt_tokens;
  // (T) or empty: experts are chosen evenly by these (kernels::Routing.even_keys). For benchmarks.
  std::span<const uint32_t> even_keys;
  // On the model's device, the same for all steps: tokens that the host may not have seen yet
  // (kernels::SampleParams.drawn). Null: no token is negative.
  const int32_t* drawn = nullptr;
  // (B): which frequencies a LongRoPE model uses, 0 up to ModelInfo.rope_border, 1 beyond; empty:
  // 0.
  std::span<const uint8_t> rope_sets;
  std::span<const int32_t> drawn_slots;  // (R) or empty: for the tail
  StepTail* tail = nullptr;
};

// The largest step that a model is prepared for.
struct MaxStep {
  int64_t tokens = 0;     // T
  int64_t rows = 0;       // R: logits rows
  int64_t sequences = 0;  // B; 0: as many as tokens
  int64_t pages = 0;      // of one sequence; 0: few
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelInfo& info() const = 0;

  // Memory for activations and op workspaces of a step.
  virtual int64_t ActivationBytes(const MaxStep& max) const = 0;
  // Makes that memory. Called once, before the first Forward.
  virtual Status Prepare(const MaxStep& max) = 0;

  // Computes the step, writes its k and v into the pool, and the wanted logits rows, (R, V) FP32,
  // on the device of ops(); launches the batch's tail behind them. Allocates nothing but, on GPUs,
  // a recording per new shape of a step. Returns a pointer that stays valid until the next call;
  // the step may still be under way.
  virtual const float* Forward(const Batch& batch, const KvPool& kv) = 0;

  // ---- The draft head of a checkpoint with an MTP module, if LoadOptions.draft asked for it.
  virtual bool has_draft() const { return false; }
  // (T, D) BF16: what the draft head continues from, for every token of the last Forward or
  // ForwardDraft. Only with has_draft().
  virtual const uint16_t* hidden() const { return nullptr; }
  // As Forward, through the draft head: row i's token follows the position whose hidden state is
  // row i of `hidden` (T, D), and stands at that position in the head's own cache. `hidden` may be
  // what hidden() returned. Recurrent states are neither read nor written.
  virtual const float* ForwardDraft(const Batch&, [[maybe_unused]] const uint16_t* hidden,
                                    const KvPool&) {
    return nullptr;
  }

  virtual const kernels::OpTable& ops() const = 0;
};

struct LoadOptions {
  const kernels::OpTable* ops = nullptr;  // null: CpuOps()
  ThreadPool* pool = nullptr;             // required; outlives the model
  kernels::ActivationFormat activations = kernels::ActivationFormat::kBf16;
  // Tokens of prompts in NVFP4, where the ops have linear_w4a4 and weights an input_scale; in E4M3,
  // where they have linear_fp8 and it takes the weights.
  PromptForms prompt_forms = {.w4a4 = true};
  int64_t max_positions = 0;  // length of the RoPE tables; 0: the config's, at most 2^20
  TensorParallel tp;
  bool draft = false;                  // load the MTP module, if the checkpoint has one
  Progress* progress = nullptr;        // advanced by stored bytes
  LinearObserver* observer = nullptr;  // hears every linear's input; outlives the model
  // Where the device is not the host: stored bytes that may be there and in the process's memory at
  // once; in the page cache, too, where the device takes its memory from the host's.
  int64_t drop_behind_bytes = int64_t{512} << 20;
};

// Picks the implementation by config.json's "architectures"; kUnsupported lists what exists.
Result<std::unique_ptr<Model>> LoadModel(const formats::Checkpoint& checkpoint,
                                         const LoadOptions& options);

// The same checks and byte counts from names and shapes alone, without reading tensor data: for
// `inspect` and the memory plan.
Result<ModelInfo> DescribeModel(const formats::Checkpoint& checkpoint);

}  // namespace nibble::models
