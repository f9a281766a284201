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

// The table of a variant, or null if this processor or build lacks it.
const OpTable* FindVariant(std::string_view variant) {
  [[maybe_unused]] const CpuFeatures& features = GetCpuInfo().features;
#if defined(__x86_64__)
  if (variant == "avx512" && features.avx512) {
    static const OpTable table = features.avx512_bf16 ? MakeTable<cpu::Avx512Linear>("avx512")
                                                      : MakeTable<cpu::Avx512VnniLinear>("avx512");
    return &table;
  }
  if (variant == "avx2" && features.avx2) {
    static const OpTable table = MakeTable<cpu::Avx2Linear>("avx2");
    return &table;
  }
#endif
  if (variant == "generic") {
    static const OpTable table = MakeTable<cpu::GenericLinear>("generic");
    return &table;
  }
  return nullptr;
}

// Fastest first.
constexpr std::string_view kVariants[] = {"avx512", "avx2", "neon", "generic"};

}  // namespace

const OpTable& CpuOps() {
  static const OpTable* const best = [] {
    const OpTable* table = nullptr;
    for (const std::string_view variant : kVariants) {
      if (table == nullptr) table = FindVariant(variant);
    }
    return table;  // "generic" is everywhere
  }();
  return *best;
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
