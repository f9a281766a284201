// The weight table of a model, written once as a list of calls on a WeightVisitor, and walked for
// different ends: to load and pack (LoadModel), to count bytes and check names (DescribeModel), to
// make a tiny random checkpoint (tests).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "device/resident.h"
#include "formats/checkpoint.h"
#include "kernels/ops.h"
#include "tensor/quant_slice.h"

namespace nibble::models {

struct StepContext;

// Hears what goes into linears, for calibration. Called on the thread that runs Forward.
class LinearObserver {
 public:
  virtual ~LinearObserver() = default;
  // x (M, K) BF16 is about to be multiplied by the weights of `modules`
  // ("model.layers.0.self_attn.q_proj", ...), which share it.
  virtual void OnInput(std::span<const std::string> modules, const uint16_t* x, int64_t m,
                       int64_t k) = 0;
};

// What a linear or a block reads, and the norm that x goes through first.
struct LayerInput {
  const uint16_t* x = nullptr;       // (M, K) BF16
  kernels::InputNorm norm;           // weight null: none
  kernels::ActivationLayout layout;  // not rows: without a norm, into one linear alone
};

// Where a result goes: y = result or, with add, y += result.
struct LayerOutput {
  uint16_t* y = nullptr;  // (M, N) BF16
  bool add = false;
};

// y = x Wᵀ + bias, rows stacked from one or more stored weights. Neighbours of one format share a
// packed weight; a checkpoint that mixes formats inside the stack gives several.
struct Linear {
  struct Segment {
    std::unique_ptr<kernels::PackedWeight> weight;
    int64_t first_row = 0;
  };
  std::vector<Segment> segments;
  Resident<float> bias;  // (N) or empty
  int64_t n = 0;
  int64_t k = 0;
  // All gate rows, then as many of up: packed for an activation where they share a format. Set
  // before it is visited.
  bool is_gate_up = false;
  // Set while calibrating: who hears the inputs, and the names of the stacked weights.
  LinearObserver* observer = nullptr;
  std::vector<std::string> modules;

  // Tells the observer, if there is one, of an input. Run does it; for linears inside other ops.
  void Observe(const uint16_t* x, int64_t m) const {
    if (observer != nullptr) observer->OnInput(modules, x, m, k);
  }
  // The same of an input that may have a norm before it.
  void Observe(const kernels::OpTable& ops, const kernels::OpContext& context, const LayerInput& in,
               int64_t m) const;
  void Run(const kernels::OpTable& ops, const kernels::OpContext& context, const LayerInput& in,
           int64_t m, const LayerOutput& out) const;
  // All rows of a step, each by its role (StepContext.runs).
  void Run(const StepContext& step, const LayerInput& in, const LayerOutput& out) const;
  void RunF32(const StepContext& step, const LayerInput& in, float* y) const;
  // y (T, N / 2) = the activation of gate and up, where they share a packed weight.
  bool activates() const { return is_gate_up && segments.size() == 1; }
  void RunActivated(const StepContext& step, const LayerInput& in,
                    const kernels::Activation& activation, uint16_t* y,
                    kernels::ActivationLayout y_layout) const;
  // How x of all rows of a step is best laid out by the op that writes it.
  kernels::ActivationLayout XLayout(const StepContext& step) const;
  // y (M, N) FP32, rows y_stride apart (0: N).
  void RunF32(const kernels::OpTable& ops, const kernels::OpContext& context, const LayerInput& in,
              int64_t m, float* y, int64_t y_stride = 0) const;
};

// first.Run(step, in, {y}) and second.RunF32(step, in, y_f32), in one launch where that is faster.
void RunPair(const StepContext& step, const LayerInput& in, const Linear& first, uint16_t* y,
             const Linear& second, float* y_f32);

struct LinearPart {
  std::string prefix;  // "model.layers.0.self_attn.q_proj": without ".weight"
  int64_t n = 0;       // rows as stored
  // Which of them, in which order; empty: all. A row moves with its scales, so the order is exact.
  std::vector<RowRange> rows;

  int64_t rows_taken() const { return rows.empty() ? n : RowCount(rows); }
};

enum class Bias { kNone, kRequired, kIfStored };

// One projection per head, out of the rows of one stored weight (n, k).
struct HeadLinears {
  std::string prefix;
  int64_t n = 0;
  int64_t k = 0;
  std::vector<RowRange> heads;
  // The head's linear is Wᵀ: (k, rows). Not a re-ordering of codes, so the weight is dequantised to
  // BF16.
  bool transposed = false;
};

// The routed experts of one layer: gate_up (2F, D), gate rows first, and down (D, F) of each.
struct ExpertsSpec {
  std::string prefix;  // "model.layers.3.mlp.experts"
  int64_t experts = 0;
  int64_t first = 0;  // held by this rank: [first, first + count)
  int64_t count = 0;
  int64_t top_k = 0;  // for bytes per token
  int64_t d = 0;
  int64_t f = 0;
  bool gated = true;
  bool bias = false;
  formats::ExpertLayout layout;  // where experts are stacked
};

struct Expert {
  Linear gate_up;
  Linear down;
};

// The same, as the moe op reads them; entries outside [first, first + count) are empty.
std::vector<kernels::ExpertWeights> ExpertTable(const ExpertsSpec& spec,
                                                const std::vector<Expert>& experts);
kernels::ExpertWeights ExpertOf(const Linear& gate_up, const Linear& down);

// What a weight's bytes are counted under.
enum class Section : uint8_t {
  kAttention,
  kLinearAttention,
  kFfn,
  kExperts,
  kSharedExpert,
  kHead,
  kOther,  // embedding row, router, norms
  kDraft,  // the draft head: read once per drafted token, and no part of the model's own token
};
inline constexpr int kSections = 8;
std::string_view SectionName(Section section);  // "linear_attention"

class WeightVisitor {
 public:
  virtual ~WeightVisitor() = default;

  // What the following weights belong to. At first kOther. kDraft stays: whatever blocks a draft
  // head is made of, it is visited last.
  void SetSection(Section section) {
    if (section_ != Section::kDraft) section_ = section;
  }
  Section section() const { return section_; }

  // Stacked linears with equal K, as stored. columns: the part of K that is taken.
  virtual void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear* out,
                           ColumnRange columns = {}) = 0;

  // A linear whose few rows decide where a token goes, (n, k): a router, or a shared expert's gate.
  virtual void VisitRouter(const std::string& prefix, int64_t n, int64_t k, Bias bias,
                           Linear* out) {
    VisitLinear({{prefix, n, {}}}, k, bias, out);
  }

  // out: one Linear per head.
  virtual void VisitHeadLinears(const HeadLinears& heads, std::vector<Linear>* out) = 0;

  // out: one Expert per expert held.
  virtual void VisitExperts(const ExpertsSpec& spec, std::vector<Expert>* out) = 0;

  // The token embedding, (V, D): looked up by row. tied_head: lm_head is the same tensor, read
  // whole for every token.
  virtual void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                              Linear* out) = 0;

  // A tensor that is used in FP32: norm weights, convolutions and the like. n elements as stored,
  // in rows of `width`; `rows` picks some of them.
  virtual void VisitVector(const std::string& name, int64_t n, Resident<float>* out,
                           int64_t width = 1, const std::vector<RowRange>& rows = {}) = 0;

  // A scalar that may be absent (KV scales): `out` keeps its value then. Several names: the first
  // that is stored counts.
  virtual void VisitScalar(const std::vector<std::string>& names, float* out) = 0;

  // Tensors that this model knows and does not use, by the end of their name
  // ("rotary_emb.inv_freq"): not reported as left over.
  virtual void Ignore(std::string_view suffix) = 0;
  // The same by the start of their name as a plain text model gives it ("mtp.").
  virtual void IgnorePrefix(std::string_view prefix) = 0;

 private:
  Section section_ = Section::kOther;
};

}  // namespace nibble::models
