// What the ops of a step are, what they read and what they cost: a table of ops that passes every
// call on to another one, and meanwhile, on demand,
//
//   inspects  notes what is called, with the bytes it reads, and which experts are hit;
//   times     notes how long calls take, where ops have run when they return: on the host;
//   omits     leaves out all calls of one kind. What a step loses by it is what the kind costs in
//             the step, overlap with its neighbours included, and nothing stands between the
//             kernels of the others. (What the step then computes means nothing.)
//
// A kind is an op with its shape. One probe at a time, since entries of OpTable carry no context.
// Its mode is changed while no op runs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops.h"

namespace nibble::kernels {

class OpProbe {
 public:
  // `inner` outlives the probe.
  explicit OpProbe(const OpTable& inner);
  ~OpProbe();
  OpProbe(const OpProbe&) = delete;
  OpProbe& operator=(const OpProbe&) = delete;

  const OpTable& table() const { return table_; }

  struct Kind {
    std::string_view op;
    int64_t n = 0;  // of linears (N, K), of experts (E, top_k), of attention the window
    int64_t k = 0;
    int64_t calls = 0;
    double bytes = 0;    // that these read: weights, cache, states, logits; of Inspect
    double seconds = 0;  // of Time

    std::string name() const;  // "linear 5120x2048"
    bool Is(const Kind& other) const { return op == other.op && n == other.n && k == other.k; }
  };

  void PassOn();

  // Steps to look at have so many tokens, one per sequence, each behind `context` others; other
  // steps are passed on.
  struct InspectedStep {
    int64_t tokens = 0;
    int64_t context = 0;
  };
  // Ops are not recorded meanwhile, and the experts of each call are fetched from the device.
  void Inspect(const InspectedStep& step);
  void Time(const InspectedStep& step);
  // Since Inspect or Time, in the order of their first calls.
  const std::vector<Kind>& kinds() const { return kinds_; }
  // Experts hit, and calls that they belong to.
  int64_t experts_hit() const { return experts_hit_; }
  int64_t expert_calls() const { return expert_calls_; }

  void Omit(const Kind& kind);

 private:
  enum class Mode { kPassOn, kInspect, kTime, kOmit };

  template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
  static void Run(const OpContext& context, const Params& params);
  template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
  void Wrap(std::string_view name);

  // Adds the experts' bytes to `kind`.
  void RunHeard(const OpContext& context, const MoeParams& params, Kind& kind);
  void Note(const Kind& call);
  void Restart(Mode mode, const InspectedStep& step);

  const OpTable& inner_;
  OpTable table_;
  Mode mode_ = Mode::kPassOn;
  InspectedStep inspected_;
  std::vector<Kind> kinds_;
  int64_t experts_hit_ = 0;
  int64_t expert_calls_ = 0;
  Kind omitted_;
  uint32_t recordings_ = 0;
};

}  // namespace nibble::kernels
