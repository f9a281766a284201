// The weight table of a model, written once as a list of calls on a WeightVisitor, and walked for
// different ends: to load and pack (LoadModel), to count bytes and check names (DescribeModel), to
// make a tiny random checkpoint (tests).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"

namespace nibble::models {

// Hears what goes into linears, for calibration. Called on the thread that runs Forward.
class LinearObserver {
 public:
  virtual ~LinearObserver() = default;
  // x (M, K) BF16 is about to be multiplied by the weights of `modules`
  // ("model.layers.0.self_attn.q_proj", ...), which share it.
  virtual void OnInput(std::span<const std::string> modules, const uint16_t* x, int64_t m,
                       int64_t k) = 0;
};

// y = x Wᵀ + bias, rows stacked from one or more stored weights. Neighbours of one format share a
// packed weight; a checkpoint that mixes formats inside the stack gives several.
struct Linear {
  struct Segment {
    std::unique_ptr<kernels::PackedWeight> weight;
    int64_t first_row = 0;
  };
  std::vector<Segment> segments;
  std::vector<float> bias;  // (N) or empty
  int64_t n = 0;
  int64_t k = 0;
  // Set while calibrating: who hears the inputs, and the names of the stacked weights.
  LinearObserver* observer = nullptr;
  std::vector<std::string> modules;

  // y (M, N) BF16, rows y_stride apart.
  void Run(const kernels::OpTable& ops, const kernels::OpContext& context, const uint16_t* x,
           int64_t m, uint16_t* y) const;
  // y (M, N) FP32.
  void RunF32(const kernels::OpTable& ops, const kernels::OpContext& context, const uint16_t* x,
              int64_t m, float* y) const;
};

struct LinearPart {
  std::string prefix;  // "model.layers.0.self_attn.q_proj": without ".weight"
  int64_t n = 0;
};

enum class Presence { kRequired, kOptional };
enum class Bias { kNone, kRequired, kIfStored };

class WeightVisitor {
 public:
  virtual ~WeightVisitor() = default;

  // Stacked linears with equal K.
  virtual void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias,
                           Linear* out) = 0;

  // The token embedding, (V, D): looked up by row. tied_head: lm_head is the same tensor, read
  // whole for every token.
  virtual void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                              Linear* out) = 0;

  // A vector that is used in FP32: norm weights and the like.
  virtual void VisitVector(const std::string& name, int64_t n, std::vector<float>* out) = 0;

  // A scalar that may be absent (KV scales): `out` keeps its value then. Several names: the first
  // that is stored counts.
  virtual void VisitScalar(const std::vector<std::string>& names, float* out) = 0;

  // Tensors that this model knows and does not use ("rotary_emb.inv_freq"): not reported as left
  // over.
  virtual void Ignore(std::string_view suffix) = 0;
};

}  // namespace nibble::models
