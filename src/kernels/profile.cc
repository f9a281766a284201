#include "kernels/profile.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace nibble::kernels {
namespace {

// Entries of OpTable carry no context.
OpProfile* active = nullptr;

}  // namespace

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void OpProfile::Run(const OpContext& context, const Params& params) {
  const auto self = reinterpret_cast<void*>(&Run<Params, kEntry>);
  const auto name =
      std::ranges::find(active->names_, self, &std::pair<void*, std::string_view>::first);
  Device& device = *active->inner_.device;
  Call call = {.op = name->second, .begin = device.Mark()};
  (active->inner_.*kEntry)(context, params);
  call.end = device.Mark();
  active->calls_.push_back(std::move(call));
}

template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
void OpProfile::Wrap(std::string_view name) {
  if (inner_.*kEntry == nullptr) return;
  table_.*kEntry = Run<Params, kEntry>;
  names_.emplace_back(reinterpret_cast<void*>(&Run<Params, kEntry>), name);
}

OpProfile::OpProfile(const OpTable& inner) : inner_(inner), table_(inner) {
  NIBBLE_CHECK(active == nullptr, "one profile at a time");
  active = this;
  table_.recordable = false;
  Wrap<LinearParams, &OpTable::linear>("linear");
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

OpProfile::~OpProfile() { active = nullptr; }

std::vector<OpProfile::Line> OpProfile::Take() {
  inner_.device->Synchronize();
  std::map<std::string_view, Line> sums;
  for (const Call& call : calls_) {
    Line& line = sums.try_emplace(call.op, Line{.op = call.op}).first->second;
    ++line.calls;
    line.seconds += inner_.device->SecondsBetween(*call.begin, *call.end);
  }
  calls_.clear();
  std::vector<Line> lines;
  for (const auto& [name, line] : sums) lines.push_back(line);
  std::ranges::sort(lines, std::greater(), &Line::seconds);
  return lines;
}

}  // namespace nibble::kernels
