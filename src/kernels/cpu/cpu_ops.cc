// The OpTable of the CPU backend: which kernels run on this processor, one table per variant.
#include "device/cpu.h"
#include "kernels/cpu/linear/linear.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/ops.h"

namespace nibble::kernels {
namespace {

// A function pointer of OpTable carries no context: the template argument does.
template <const cpu::LinearKernels& (*kKernels)()>
Result<std::unique_ptr<PackedWeight>> PackWeightFor(const PackParams& params) {
  return cpu::PackWeight(params, kKernels());
}

template <const cpu::LinearKernels& (*kKernels)()>
OpTable MakeTable(std::string_view variant) {
  OpTable table = {
      .backend = "cpu",
      .variant = variant,
      .pack_weight = PackWeightFor<kKernels>,
      .linear_workspace = cpu::LinearWorkspace,
      .linear = cpu::Linear,
      .embed = cpu::Embed,
  };
  cpu::FillVectorOps(variant, &table);
  return table;
}

const OpTable& GenericOps() {
  static const OpTable table = MakeTable<cpu::GenericLinear>("generic");
  return table;
}

// The table of a variant, or null if this processor or build lacks it.
const OpTable* FindVariant(std::string_view variant) {
  if (variant == "generic") return &GenericOps();
  return nullptr;
}

// Fastest first.
constexpr std::string_view kVariants[] = {"avx512", "avx2", "neon", "generic"};

}  // namespace

const OpTable& CpuOps() {
  static const OpTable& best = []() -> const OpTable& {
    for (const std::string_view variant : kVariants) {
      if (const OpTable* table = FindVariant(variant)) return *table;
    }
    return GenericOps();
  }();
  return best;
}

Result<const OpTable*> CpuOpsVariant(std::string_view variant) {
  if (variant.empty()) return &CpuOps();
  if (const OpTable* table = FindVariant(variant)) return table;
  std::string available;
  for (const std::string_view name : kVariants) {
    if (FindVariant(name) == nullptr) continue;
    available += available.empty() ? "" : ", ";
    available += name;
  }
  return Fail(Code::kUnsupported, "CPU variant '{}': not on this processor or build; available: {}",
              variant, available);
}

}  // namespace nibble::kernels
