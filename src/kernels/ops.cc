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
  check(table.embed != nullptr, "embed");
  check(table.rms_norm != nullptr, "rms_norm");
  check(table.add != nullptr, "add");
  check(table.gather_rows != nullptr, "gather_rows");
  check(table.swiglu != nullptr, "swiglu");
  check(table.rope_and_cache != nullptr, "rope_and_cache");
  check(table.attention_workspace != nullptr, "attention_workspace");
  check(table.attention != nullptr, "attention");
  check(table.sample_workspace != nullptr, "sample_workspace");
  check(table.sample != nullptr, "sample");
  return missing;
}

}  // namespace nibble::kernels
