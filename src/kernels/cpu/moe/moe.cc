#include "kernels/cpu/moe/moe.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/linear/linear.h"
#include "kernels/cpu/moe/routing.h"
#include "kernels/cpu/norm/norm.h"
#include "kernels/cpu/parallel.h"
#include "numerics/bf16.h"

namespace nibble::kernels::cpu {
namespace {

// Tokens of one expert that a thread takes at a time: their prepared form stays in its cache.
constexpr int64_t kRunTokens = 192;

// Panels of a piece at most, where there are fewer threads than pieces: every piece prepares its
// activations again, so the longer ones waste less; the outputs of a piece stay in a thread's
// cache.
constexpr int64_t kMaxInputPanels = 64;
constexpr int64_t kMaxOutputPanels = 32;
constexpr int64_t kPiecesPerThread = 4;

constexpr int64_t kRouteGrain = 16;
constexpr int64_t kActivationGrain = 8192;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t PiecePanels(int64_t panels, int threads, int64_t most) {
  return std::clamp(CeilDiv(panels, kPiecesPerThread * threads), int64_t{1}, most);
}

// An expert and the tokens that go through it.
struct ExpertRun {
  int32_t expert = MoeListener::kShared;
  const ExpertWeights* weights = nullptr;
  int64_t f = 0;
  int64_t m = 0;
  const int32_t* tokens = nullptr;       // (m), null: all of the step
  const float* token_weights = nullptr;  // (m) or null: 1
  uint16_t* hidden = nullptr;            // (m, inputs(f)), after the activation in the first f
};

// One of the linears before the activation.
struct InputLinear {
  const ExpertRun* run = nullptr;
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;
  uint16_t* y = nullptr;  // rows inputs(f) apart
  int64_t first_piece = 0;
};

struct ThreadScratch {
  std::byte* linear = nullptr;  // workspace
  uint16_t* x = nullptr;        // (kRunTokens, D): rows of an expert's tokens
  float* y = nullptr;           // (kRunTokens, columns of a piece)
  float* routing = nullptr;
};

// Everything a call needs beside its Params, carved from the workspace.
struct Scratch {
  float* logits = nullptr;         // (T, E)
  int32_t* chosen = nullptr;       // (T, top_k)
  float* chosen_weight = nullptr;  // (T, top_k)
  int64_t* first_slot = nullptr;   // (E + 1)
  int32_t* slot_token = nullptr;   // (T top_k): by expert, then by token
  float* slot_weight = nullptr;    // (T top_k)
  float* shared_weight = nullptr;  // (T)
  float* sum = nullptr;            // (T, D)
  uint16_t* normed = nullptr;      // (T, D or what the router sees)
  uint16_t* hidden = nullptr;      // (T top_k, 2F), then (T, 2F) of the shared expert
  ExpertRun* runs = nullptr;       // (E + 1)
  InputLinear* inputs = nullptr;   // (2 (E + 1))
  std::byte* threads = nullptr;    // ThreadScratch of each
};

class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  void Take(T** pointer, int64_t count) {
    *pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

int64_t LinearBytes(const MoeSizes& s) {
  return static_cast<int64_t>(
      LinearWorkspace(std::min(s.t, kPassTokens), std::max({s.d, s.f, s.router_d})));
}

int64_t CarveThread(std::byte* base, const MoeSizes& s, ThreadScratch* out) {
  Carver carver(base);
  const int64_t rows = std::min(s.t, kRunTokens);
  carver.Take(&out->linear, LinearBytes(s));
  carver.Take(&out->x, rows * s.d);
  carver.Take(&out->y, rows * kMaxOutputPanels * kPanelRows);
  // Groups are no more than experts.
  carver.Take(&out->routing, RoutingScratch({.experts = s.experts, .groups = s.experts}));
  return carver.used();
}

int64_t Carve(std::byte* base, int threads, const MoeSizes& s, Scratch* out) {
  Carver carver(base);
  const int64_t slots = s.t * s.top_k;
  carver.Take(&out->logits, s.t * s.experts);
  carver.Take(&out->chosen, slots);
  carver.Take(&out->chosen_weight, slots);
  carver.Take(&out->first_slot, s.experts + 1);
  carver.Take(&out->slot_token, slots);
  carver.Take(&out->slot_weight, slots);
  carver.Take(&out->shared_weight, s.t);
  carver.Take(&out->sum, s.t * s.d);
  carver.Take(&out->normed, s.t * std::max(s.d, s.router_d));
  carver.Take(&out->hidden, (slots + s.t) * 2 * s.f);
  carver.Take(&out->runs, s.experts + 1);
  carver.Take(&out->inputs, 2 * (s.experts + 1));
  ThreadScratch ignored;
  carver.Take(&out->threads, threads * CarveThread(nullptr, s, &ignored));
  return carver.used();
}

class MoeRun {
 public:
  MoeRun(const VectorKernels& kernels, const OpContext& context, const MoeParams& params)
      : kernels_(kernels),
        context_(context),
        p_(params),
        sizes_{.t = params.t,
               .d = params.d,
               .f = std::max(params.f, params.shared_f),
               .router_d = params.router_x != nullptr ? params.router->k() : 0,
               .experts = params.routing.experts,
               .top_k = params.routing.top_k} {
    const int64_t needed = Carve(context.workspace, Threads(context), sizes_, &scratch_);
    NIBBLE_CHECK(needed <= static_cast<int64_t>(context.workspace_bytes),
                 "experts of {} tokens: workspace of {} bytes", p_.t, context.workspace_bytes);
    sum_ = p_.out_f32 != nullptr ? p_.out_f32 : scratch_.sum;
    x_ = p_.x;
    router_x_ = p_.router_x != nullptr ? p_.router_x : p_.x;
  }

  void Run() {
    if (p_.norm.weight != nullptr) Norm();
    RouteTokens();
    GroupByExpert();
    AddSharedExpert();
    if (p_.listener != nullptr) TellInputs();
    RunInputs();
    Activate();
    if (p_.listener != nullptr) TellHidden();
    RunOutputs();
  }

 private:
  ThreadScratch OfThread(int thread) const {
    ThreadScratch scratch;
    const int64_t bytes = CarveThread(nullptr, sizes_, &scratch);
    CarveThread(scratch_.threads + thread * bytes, sizes_, &scratch);
    return scratch;
  }

  // For linears that all threads share: in the first one's scratch.
  void RunLinear(const uint16_t* x, const PackedWeight* weight, const float* bias, float* y) const {
    OpContext context = context_;
    context.workspace = OfThread(0).linear;
    context.workspace_bytes = static_cast<size_t>(LinearBytes(sizes_));
    Linear(context, {.x = x,
                     .x_stride = weight->k(),
                     .weight = weight,
                     .bias = bias,
                     .y_f32 = y,
                     .y_stride = weight->n(),
                     .m = p_.t});
  }

  void Norm() {
    const int64_t k = p_.router->k();
    NormRows(kernels_, context_, p_.norm, router_x_, k, p_.t, k, scratch_.normed);
    if (p_.router_x == nullptr) x_ = scratch_.normed;
    router_x_ = scratch_.normed;
  }

  void RouteTokens() {
    RunLinear(router_x_, p_.router, p_.router_bias, scratch_.logits);
    const int64_t k = p_.routing.top_k;
    const int64_t groups = CeilDiv(p_.t, kRouteGrain);
    ForEachItem(context_, groups, [&](int64_t group, int thread) {
      const int64_t end = std::min(p_.t, (group + 1) * kRouteGrain);
      for (int64_t t = group * kRouteGrain; t < end; ++t) {
        Route(kernels_, p_.routing, scratch_.logits + t * p_.routing.experts,
              OfThread(thread).routing, scratch_.chosen + t * k, scratch_.chosen_weight + t * k);
        if (p_.routing.even_keys != nullptr)
          RouteEvenly(p_.routing, t, scratch_.chosen + t * k, scratch_.chosen_weight + t * k);
      }
    });
  }

  // A counting sort of (token, expert) by expert; makes a run of every held expert with tokens.
  void GroupByExpert() {
    const int64_t slots = p_.t * p_.routing.top_k;
    const int64_t experts = p_.routing.experts;
    int64_t* first = scratch_.first_slot;
    std::fill_n(first, experts + 1, 0);
    for (int64_t i = 0; i < slots; ++i) {
      if (Held(scratch_.chosen[i])) ++first[scratch_.chosen[i] + 1];
    }
    for (int64_t e = 0; e < experts; ++e) first[e + 1] += first[e];
    routed_slots_ = first[experts];
    const int64_t width = p_.activation.inputs(p_.f);
    for (int64_t e = 0; e < experts; ++e) {
      if (first[e + 1] == first[e]) continue;
      AddRun({.expert = static_cast<int32_t>(e),
              .weights = &p_.experts[e],
              .f = p_.f,
              .m = first[e + 1] - first[e],
              .tokens = scratch_.slot_token + first[e],
              .token_weights = scratch_.slot_weight + first[e],
              .hidden = scratch_.hidden + first[e] * width});
    }
    for (int64_t i = 0; i < slots; ++i) {
      const int32_t e = scratch_.chosen[i];
      if (!Held(e)) continue;
      const int64_t slot = first[e]++;
      scratch_.slot_token[slot] = static_cast<int32_t>(i / p_.routing.top_k);
      scratch_.slot_weight[slot] = scratch_.chosen_weight[i];
    }
  }

  bool Held(int32_t expert) const { return p_.experts[expert].gate_up != nullptr; }

  void AddSharedExpert() {
    if (p_.shared.gate_up == nullptr) return;
    if (p_.shared_gate != nullptr) {
      RunLinear(x_, p_.shared_gate, nullptr, scratch_.shared_weight);
      for (int64_t t = 0; t < p_.t; ++t)
        scratch_.shared_weight[t] = 1.0f / (1.0f + std::exp(-scratch_.shared_weight[t]));
    }
    AddRun({.weights = &p_.shared,
            .f = p_.shared_f,
            .m = p_.t,
            .token_weights = p_.shared_gate != nullptr ? scratch_.shared_weight : nullptr,
            .hidden = scratch_.hidden + routed_slots_ * p_.activation.inputs(p_.f)});
  }

  void AddRun(const ExpertRun& run) { scratch_.runs[runs_++] = run; }

  // ---- For calibration

  void TellInputs() const {
    uint16_t* rows = OfThread(0).x;
    for (int64_t i = 0; i < runs_; ++i) {
      const ExpertRun& run = scratch_.runs[i];
      for (int64_t row = 0; row < run.m; row += kRunTokens) {
        const int64_t m = std::min(kRunTokens, run.m - row);
        p_.listener->OnExpertInput(run.expert, false, InputRows(run, row, m, rows), m, p_.d);
      }
    }
  }

  // Activated rows lie apart where there was a gate, so one at a time.
  void TellHidden() const {
    for (int64_t i = 0; i < runs_; ++i) {
      const ExpertRun& run = scratch_.runs[i];
      const int64_t width = p_.activation.inputs(run.f);
      for (int64_t row = 0; row < run.m; ++row)
        p_.listener->OnExpertInput(run.expert, true, run.hidden + row * width, 1, run.f);
    }
  }

  // ---- The linears before the activation

  void RunInputs() {
    int64_t inputs = 0, panels = 0;
    const auto add = [&](const ExpertRun& run, const PackedWeight* weight, int64_t first_row) {
      const float* bias = run.weights->gate_up_bias;
      scratch_.inputs[inputs++] = {.run = &run,
                                   .weight = weight,
                                   .bias = bias == nullptr ? nullptr : bias + first_row,
                                   .y = run.hidden + first_row};
      panels += LinearPanels(*weight);
    };
    for (int64_t i = 0; i < runs_; ++i) {
      const ExpertRun& run = scratch_.runs[i];
      add(run, run.weights->gate_up, 0);
      if (run.weights->up != nullptr) add(run, run.weights->up, run.f);
    }
    const int64_t per_piece = PiecePanels(panels, Threads(context_), kMaxInputPanels);
    int64_t pieces = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      scratch_.inputs[i].first_piece = pieces;
      pieces += CeilDiv(LinearPanels(*scratch_.inputs[i].weight), per_piece);
    }
    ForEachItem(context_, pieces, [&](int64_t piece, int thread) {
      const InputLinear* after = std::upper_bound(
          scratch_.inputs, scratch_.inputs + inputs, piece,
          [](int64_t p, const InputLinear& input) { return p < input.first_piece; });
      const InputLinear& input = *(after - 1);
      const int64_t begin = (piece - input.first_piece) * per_piece;
      const int64_t end = std::min(begin + per_piece, LinearPanels(*input.weight));
      RunInputPiece(input, begin, end, OfThread(thread));
    });
  }

  void RunInputPiece(const InputLinear& input, int64_t begin, int64_t end,
                     const ThreadScratch& scratch) const {
    const ExpertRun& run = *input.run;
    const int64_t width = p_.activation.inputs(run.f);
    for (int64_t i = 0; i < run.m; i += kRunTokens) {
      const int64_t m = std::min(kRunTokens, run.m - i);
      RunPanels(scratch,
                {.x = InputRows(run, i, m, scratch.x),
                 .x_stride = p_.d,
                 .weight = input.weight,
                 .bias = input.bias,
                 .y = input.y + i * width + begin * kPanelRows,
                 .y_stride = width,
                 .m = m},
                begin, end);
    }
  }

  // Rows [begin, begin + m) of the run's tokens, gathered into `rows` where they do not lie
  // together.
  const uint16_t* InputRows(const ExpertRun& run, int64_t begin, int64_t m, uint16_t* rows) const {
    if (run.tokens == nullptr) return x_ + begin * p_.d;
    if (m == 1 && !p_.weight_on_input) return x_ + run.tokens[begin] * p_.d;
    for (int64_t i = 0; i < m; ++i) {
      uint16_t* row = rows + i * p_.d;
      std::copy_n(x_ + run.tokens[begin + i] * p_.d, p_.d, row);
      if (p_.weight_on_input) kernels_.scale_row(row, run.token_weights[begin + i], p_.d);
    }
    return rows;
  }

  void RunPanels(const ThreadScratch& scratch, const LinearParams& params, int64_t begin,
                 int64_t end) const {
    const OpContext context = {.workspace = scratch.linear,
                               .workspace_bytes = static_cast<size_t>(LinearBytes(sizes_))};
    LinearOfPanels(context, params, begin, end);
  }

  // ---- The activation, in place

  void Activate() const {
    ActivateRows(scratch_.hidden, routed_slots_, p_.f);
    if (p_.shared.gate_up != nullptr) {
      ActivateRows(scratch_.hidden + routed_slots_ * p_.activation.inputs(p_.f), p_.t, p_.shared_f);
    }
  }

  void ActivateRows(uint16_t* hidden, int64_t rows, int64_t f) const {
    const int64_t width = p_.activation.inputs(f);
    ForEachRange(context_, rows, kActivationGrain / f + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        uint16_t* gate = hidden + i * width;
        kernels_.activate(p_.activation, gate, p_.activation.gated() ? gate + f : gate, f, gate);
      }
    });
  }

  // ---- The linears after it, and the sum

  void RunOutputs() const {
    const int64_t panels = CeilDiv(p_.d, kPanelRows);
    const int64_t per_piece = PiecePanels(panels, Threads(context_), kMaxOutputPanels);
    ForEachItem(context_, CeilDiv(panels, per_piece), [&](int64_t piece, int thread) {
      const int64_t begin = piece * per_piece;
      RunOutputPiece(begin, std::min(begin + per_piece, panels), OfThread(thread));
    });
  }

  // Columns of panels [begin, end) of every token's sum.
  void RunOutputPiece(int64_t begin, int64_t end, const ThreadScratch& scratch) const {
    const int64_t first = begin * kPanelRows;
    const int64_t columns = std::min(end * kPanelRows, p_.d) - first;
    for (int64_t t = 0; t < p_.t; ++t) std::fill_n(sum_ + t * p_.d + first, columns, 0.0f);
    for (int64_t i = 0; i < runs_; ++i) {
      const ExpertRun& run = scratch_.runs[i];
      for (int64_t row = 0; row < run.m; row += kRunTokens) {
        const int64_t m = std::min(kRunTokens, run.m - row);
        const int64_t width = p_.activation.inputs(run.f);
        RunPanels(scratch,
                  {.x = run.hidden + row * width,
                   .x_stride = width,
                   .weight = run.weights->down,
                   .bias = run.weights->down_bias,
                   .y_f32 = scratch.y,
                   .y_stride = columns,
                   .m = m},
                  begin, end);
        for (int64_t j = 0; j < m; ++j) {
          const int64_t t = run.tokens == nullptr ? row + j : run.tokens[row + j];
          kernels_.accumulate(sum_ + t * p_.d + first, scratch.y + j * columns,
                              OutputWeight(run, row + j), columns);
        }
      }
    }
    if (p_.out == nullptr) return;
    for (int64_t t = 0; t < p_.t; ++t) {
      const float* sum = sum_ + t * p_.d + first;
      uint16_t* out = p_.out + t * p_.d + first;
      if (!p_.add) {
        kernels_.round(sum, columns, out);
        continue;
      }
      uint16_t rounded[kMaxOutputPanels * kPanelRows];
      kernels_.round(sum, columns, rounded);
      kernels_.add(out, rounded, columns);
    }
  }

  float OutputWeight(const ExpertRun& run, int64_t row) const {
    if (run.token_weights == nullptr) return 1.0f;
    return p_.weight_on_input && run.tokens != nullptr ? 1.0f : run.token_weights[row];
  }

  const VectorKernels& kernels_;
  const OpContext& context_;
  const MoeParams& p_;
  const MoeSizes sizes_;
  Scratch scratch_;
  float* sum_ = nullptr;
  const uint16_t* x_ = nullptr;         // (T, D), normed
  const uint16_t* router_x_ = nullptr;  // what the router sees, normed
  int64_t runs_ = 0;
  int64_t routed_slots_ = 0;
};

}  // namespace

size_t MoeWorkspace(int threads, const MoeSizes& sizes) {
  Scratch ignored;
  return static_cast<size_t>(Carve(nullptr, threads, sizes, &ignored));
}

void Moe(const VectorKernels& kernels, const OpContext& context, const MoeParams& params) {
  MoeRun(kernels, context, params).Run();
}

}  // namespace nibble::kernels::cpu
