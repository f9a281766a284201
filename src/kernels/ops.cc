#include "kernels/ops.h"

namespace nibble::kernels {

std::vector<std::string_view> MissingOps(const OpTable& table) {
  std::vector<std::string_view> missing;
  const auto check = [&](bool filled, std::string_view name) {
    if (!filled) missing.push_back(name);
  };
  check(table.pack_weight != nullptr, "pack_weight");
  check(table.linear_workspace != nullptr, "linear_workspace");
  check(table.linear != nullptr, "linear");
  check(table.activated_workspace != nullptr, "activated_workspace");
  check(table.embed != nullptr, "embed");
  check(table.rms_norm != nullptr, "rms_norm");
  check(table.add != nullptr, "add");
  check(table.round != nullptr, "round");
  check(table.gather_rows != nullptr, "gather_rows");
  check(table.activation != nullptr, "activation");
  check(table.sigmoid_gate != nullptr, "sigmoid_gate");
  check(table.moe_workspace != nullptr, "moe_workspace");
  check(table.moe != nullptr, "moe");
  check(table.head_linear_workspace != nullptr, "head_linear_workspace");
  check(table.head_linear != nullptr, "head_linear");
  check(table.rope_and_cache != nullptr, "rope_and_cache");
  check(table.mla_rope_and_cache != nullptr, "mla_rope_and_cache");
  check(table.attention_workspace != nullptr, "attention_workspace");
  check(table.attention != nullptr, "attention");
  check(table.gated_delta_net_workspace != nullptr, "gated_delta_net_workspace");
  check(table.gated_delta_net != nullptr, "gated_delta_net");
  check(table.mamba2_workspace != nullptr, "mamba2_workspace");
  check(table.mamba2 != nullptr, "mamba2");
  check(table.sample_workspace != nullptr, "sample_workspace");
  check(table.sample != nullptr, "sample");
  return missing;
}

}  // namespace nibble::kernels
