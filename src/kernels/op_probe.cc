#include "kernels/op_probe.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "kernels/recordings.h"

namespace nibble::kernels {
namespace {

// Entries of OpTable carry no context.
OpProbe* active = nullptr;

// Written while no op runs; atomic for those who read it without a probe.
std::atomic<uint32_t> recording_number{0};

// Names of the wrappers, one per entry.
template <auto kEntry>
std::string_view name_of;

using Kind = OpProbe::Kind;

double BytesOf(const PackedWeight* weight) {
  return weight == nullptr ? 0.0 : static_cast<double>(weight->bytes());
}
double BytesOf(const ExpertWeights& expert) {
  return BytesOf(expert.gate_up) + BytesOf(expert.up) + BytesOf(expert.down);
}

// Which experts a call hits.
class HitExperts final : public MoeListener {
 public:
  explicit HitExperts(int32_t experts) : hit_(static_cast<size_t>(experts), 0) {}
  void OnExpertInput(int32_t expert, bool, const uint16_t*, int64_t, int64_t) override {
    if (expert != kShared) hit_[expert] = 1;
  }
  int64_t count() const { return std::ranges::count(hit_, 1); }
  double bytes(const MoeParams& p) const {
    double bytes = 0;
    for (size_t e = 0; e < hit_.size(); ++e)
      if (hit_[e] != 0) bytes += BytesOf(p.experts[e]);
    return bytes;
  }

 private:
  std::vector<char> hit_;
};

// Ops whose shapes are the same all over a model, and whose bytes are few beside the weights'.
template <typename Params>
Kind Describe(const Params&, const OpProbe::InspectedStep&) {
  return {};
}

Kind Describe(const LinearParams& p, const OpProbe::InspectedStep&) {
  return {.n = p.weight->n(), .k = p.weight->k(), .bytes = BytesOf(p.weight)};
}

Kind Describe(const LinearPairParams& p, const OpProbe::InspectedStep&) {
  return {.n = p.first.weight->n() + p.second.weight->n(),
          .k = p.first.weight->k(),
          .bytes = BytesOf(p.first.weight) + BytesOf(p.second.weight)};
}

Kind Describe(const HeadLinearParams& p, const OpProbe::InspectedStep&) {
  Kind kind = {.n = p.weights[0]->n(), .k = p.weights[0]->k()};
  for (const PackedWeight* weight : p.weights) kind.bytes += BytesOf(weight);
  return kind;
}

// Without the experts that are hit.
Kind Describe(const MoeParams& p, const OpProbe::InspectedStep&) {
  return {.n = p.routing.experts,
          .k = p.routing.top_k,
          .bytes = BytesOf(p.router) + BytesOf(p.shared) + BytesOf(p.shared_gate)};
}

Kind Describe(const AttentionParams& p, const OpProbe::InspectedStep& step) {
  const KvLayerView& cache = p.cache;
  const int64_t visible = p.window > 0 ? std::min<int64_t>(step.context, p.window) : step.context;
  const int64_t halves = cache.k == cache.v ? 1 : 2;
  const int64_t elements = p.sequences * visible * halves * cache.kv_heads * cache.head_dim;
  return {.n = p.window, .bytes = static_cast<double>(KvBytes(cache.format, elements))};
}

Kind Describe(const GatedDeltaNetParams& p, const OpProbe::InspectedStep&) {
  const int64_t state = int64_t{p.v_heads} * p.v_dim * p.k_dim * 4;
  return {.bytes = static_cast<double>(p.sequences.count * 2 * state)};  // read and written
}

Kind Describe(const Mamba2Params& p, const OpProbe::InspectedStep&) {
  const int64_t state = int64_t{p.heads} * p.head_dim * p.state_dim * 4;
  return {.bytes = static_cast<double>(p.sequences.count * 2 * state)};
}

Kind Describe(const SampleParams& p, const OpProbe::InspectedStep&) {
  return {.bytes = static_cast<double>(p.rows.size()) * static_cast<double>(p.vocab) * 4};
}

// How many tokens a step has, as far as the op knows.
template <typename Params>
int64_t TokensOf(const Params& p) {
  if constexpr (std::is_same_v<Params, LinearParams>) {
    return p.m;
  } else if constexpr (std::is_same_v<Params, LinearPairParams>) {
    return p.first.m;
  } else if constexpr (std::is_same_v<Params, SampleParams>) {
    return static_cast<int64_t>(p.rows.size());
  } else if constexpr (std::is_same_v<Params, GatherRowsParams>) {
    return p.r;
  } else if constexpr (requires { p.t; }) {
    return p.t;
  } else {
    return -1;
  }
}

}  // namespace

uint32_t RecordingNumber() { return recording_number.load(std::memory_order_relaxed); }
void SetRecordingNumber(uint32_t number) {
  recording_number.store(number, std::memory_order_relaxed);
}

std::string OpProbe::Kind::name() const {
  if (n == 0) return std::string(op);
  if (k == 0) return fmt::format("{}, window {}", op, n);
  return fmt::format("{} {}x{}", op, n, k);
}

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void OpProbe::Run(const OpContext& context, const Params& params) {
  const auto call = active->inner_.*kEntry;
  if (active->mode_ == Mode::kPassOn) return call(context, params);
  Kind kind = Describe(params, active->inspected_);
  kind.op = name_of<kEntry>;
  if (active->mode_ == Mode::kOmit) {
    if (!kind.Is(active->omitted_)) call(context, params);
    return;
  }
  if (TokensOf(params) != active->inspected_.tokens) return call(context, params);
  kind.calls = 1;
  if (active->mode_ == Mode::kInspect) {
    if constexpr (std::is_same_v<Params, MoeParams>) {
      active->RunHeard(context, params, kind);
    } else {
      call(context, params);
    }
  } else {
    const auto begin = std::chrono::steady_clock::now();
    call(context, params);
    kind.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  active->Note(kind);
}

void OpProbe::RunHeard(const OpContext& context, const MoeParams& params, Kind& kind) {
  HitExperts hit(params.routing.experts);
  MoeParams heard = params;
  heard.listener = &hit;
  inner_.moe(context, heard);
  ++expert_calls_;
  experts_hit_ += hit.count();
  kind.bytes += hit.bytes(params);
}

void OpProbe::Note(const Kind& call) {
  const auto known = std::ranges::find_if(kinds_, [&](const Kind& kind) { return kind.Is(call); });
  if (known == kinds_.end()) {
    kinds_.push_back(call);
    return;
  }
  known->calls += call.calls;
  known->bytes += call.bytes;
  known->seconds += call.seconds;
}

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void OpProbe::Wrap(std::string_view name) {
  name_of<kEntry> = name;
  if (inner_.*kEntry != nullptr) table_.*kEntry = Run<Params, kEntry>;
}

OpProbe::OpProbe(const OpTable& inner) : inner_(inner), table_(inner) {
  NIBBLE_CHECK(active == nullptr, "one probe at a time");
  active = this;
  Wrap<LinearParams, &OpTable::linear>("linear");
  Wrap<LinearPairParams, &OpTable::linear_pair>("linear_pair");
  Wrap<LinearParams, &OpTable::linear_w4a4>("linear_w4a4");
  Wrap<EmbedParams, &OpTable::embed>("embed");
  Wrap<RmsNormParams, &OpTable::rms_norm>("rms_norm");
  Wrap<AddParams, &OpTable::add>("add");
  Wrap<RoundParams, &OpTable::round>("round");
  Wrap<GatherRowsParams, &OpTable::gather_rows>("gather_rows");
  Wrap<ActivationParams, &OpTable::activation>("activation");
  Wrap<SigmoidGateParams, &OpTable::sigmoid_gate>("sigmoid_gate");
  Wrap<MoeParams, &OpTable::moe>("moe");
  Wrap<HeadLinearParams, &OpTable::head_linear>("head_linear");
  Wrap<RopeAndCacheParams, &OpTable::rope_and_cache>("rope_and_cache");
  Wrap<MlaRopeAndCacheParams, &OpTable::mla_rope_and_cache>("mla_rope_and_cache");
  Wrap<AttentionParams, &OpTable::attention>("attention");
  Wrap<GatedDeltaNetParams, &OpTable::gated_delta_net>("gated_delta_net");
  Wrap<Mamba2Params, &OpTable::mamba2>("mamba2");
  Wrap<SampleParams, &OpTable::sample>("sample");
}

OpProbe::~OpProbe() {
  active = nullptr;
  SetRecordingNumber(0);
}

void OpProbe::PassOn() {
  mode_ = Mode::kPassOn;
  table_.recordable = inner_.recordable;
  SetRecordingNumber(0);
}

void OpProbe::Inspect(const InspectedStep& step) { Restart(Mode::kInspect, step); }
void OpProbe::Time(const InspectedStep& step) { Restart(Mode::kTime, step); }

void OpProbe::Restart(Mode mode, const InspectedStep& step) {
  mode_ = mode;
  inspected_ = step;
  kinds_.clear();
  experts_hit_ = expert_calls_ = 0;
  table_.recordable = false;
}

void OpProbe::Omit(const Kind& kind) {
  mode_ = Mode::kOmit;
  omitted_ = {.op = kind.op, .n = kind.n, .k = kind.k};
  table_.recordable = inner_.recordable;
  SetRecordingNumber(++recordings_);
}

}  // namespace nibble::kernels
