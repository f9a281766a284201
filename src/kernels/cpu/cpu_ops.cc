// The OpTable of the CPU backend: which kernels run on this processor, one table per variant.
#include "device/cpu.h"
#include "kernels/cpu/linear/head_linear.h"
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

// The vector ops have no variants of their own for how int8 is multiplied.
template <const cpu::LinearKernels& (*kKernels)()>
OpTable MakeTable(std::string_view variant, std::string_view vector_variant) {
  OpTable table = {
      .device = &HostDevice(),
      .backend = "cpu",
      .variant = variant,
      .pack_weight = PackWeightFor<kKernels>,
      .embed = cpu::Embed,
      .head_linear_workspace = cpu::HeadLinearWorkspace,
      .head_linear = cpu::HeadLinear,
  };
  cpu::FillVectorOps(vector_variant, &table);
  return table;
}

// The table of a variant, or null if this processor or build lacks it.
const OpTable* FindVariant(std::string_view variant) {
  [[maybe_unused]] const CpuFeatures& features = GetCpuInfo().features;
#if defined(__x86_64__)
  if (variant == "amx" && features.amx_int8 && features.avx512) {
    static const OpTable table = MakeTable<cpu::AmxLinear>("amx", "avx512");
    return &table;
  }
  if (variant == "avx512bf16" && features.avx512_bf16) {
    static const OpTable table = MakeTable<cpu::Avx512Bf16Linear>("avx512bf16", "avx512bf16");
    return &table;
  }
  if (variant == "avx512" && features.avx512) {
    static const OpTable table = MakeTable<cpu::Avx512Linear>("avx512", "avx512");
    return &table;
  }
  if (variant == "avx2" && features.avx2) {
    static const OpTable table = MakeTable<cpu::Avx2Linear>("avx2", "avx2");
    return &table;
  }
#elif defined(__aarch64__)
  if (variant == "i8mm" && features.neon_i8mm) {
    static const OpTable table = MakeTable<cpu::I8mmLinear>("i8mm", "neon");
    return &table;
  }
  if (variant == "neon" && features.neon_dotprod) {
    static const OpTable table = MakeTable<cpu::NeonLinear>("neon", "neon");
    return &table;
  }
#endif
  if (variant == "generic") {
    static const OpTable table = MakeTable<cpu::GenericLinear>("generic", "generic");
    return &table;
  }
  return nullptr;
}

constexpr std::string_view kVariants[] = {"amx",  "avx512bf16", "avx512", "avx2",
                                          "i8mm", "neon",       "generic"};

const OpTable* BestVariant() {
  for (const std::string_view variant : kVariants) {
    // Intel's vdpbf16ps does half of what two FP32 multiply-adds do.
    if (variant == "avx512bf16" && !GetCpuInfo().features.fast_avx512_bf16) continue;
    if (const OpTable* table = FindVariant(variant)) return table;
  }
  return nullptr;  // not reached: "generic" is everywhere
}

}  // namespace

const OpTable& CpuOps() {
  static const OpTable* const best = BestVariant();
  return *best;
}

std::vector<const OpTable*> CpuOpsVariants() {
  std::vector<const OpTable*> tables;
  for (const std::string_view name : kVariants)
    if (const OpTable* table = FindVariant(name)) tables.push_back(table);
  return tables;
}

Result<const OpTable*> CpuOpsVariant(std::string_view variant) {
  if (variant.empty()) return &CpuOps();
  if (const OpTable* table = FindVariant(variant)) return table;
  std::string available;
  for (const OpTable* table : CpuOpsVariants()) {
    available += available.empty() ? "" : ", ";
    available += table->variant;
  }
  return Fail(Code::kUnsupported, "CPU variant '{}': not on this processor or build; available: {}",
              variant, available);
}

}  // namespace nibble::kernels
