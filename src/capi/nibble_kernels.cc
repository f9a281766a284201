#include "capi/nibble_kernels.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "capi/current_gpu.h"
#include "kernels/ops.h"

using nibble::Code;
using nibble::Fail;
using nibble::QuantView;
using nibble::Result;
using nibble::Status;
using nibble::WeightFormat;
using nibble::capi::HostBytes;
using nibble::kernels::ExpertWeights;
using nibble::kernels::MoeSizes;
using nibble::kernels::OpTable;
using nibble::kernels::PackedWeight;
using nibble::kernels::PreparedWeights;
using nibble::kernels::RouterScore;

struct nibble_gpu {
  const OpTable* ops;
  int index;
  std::string name;
};

struct nibble_weight {
  std::shared_ptr<const PackedWeight> packed;
  const nibble_gpu* gpu;
};

struct nibble_moe {
  const nibble_gpu* gpu;
  nibble_moe_config config;
  std::vector<std::shared_ptr<const PackedWeight>> weights;  // that the rest points to
  const PackedWeight* router;
  std::vector<ExpertWeights> experts;
  ExpertWeights shared;
  const PackedWeight* shared_gate;
  std::unique_ptr<PreparedWeights> prepared;
};

namespace {

// A size that no GPU holds; products of two of them fit 64 bits.
constexpr int64_t kLargest = int64_t{1} << 30;
constexpr size_t kAlignment = 64;  // of workspaces: kernels/ops.h

thread_local std::string last_error;

nibble_status StatusOf(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
    case Code::kCorruption:
    case Code::kTooLarge:
      return NIBBLE_INVALID_ARGUMENT;
    case Code::kUnsupported:
    case Code::kNotFound:
      return NIBBLE_UNSUPPORTED;
    case Code::kResourceExhausted:
      return NIBBLE_OUT_OF_MEMORY;
    default:
      return NIBBLE_FAILED;
  }
}

nibble_status Failed(nibble_status status, const char* why) noexcept {
  try {
    last_error = why;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

// Runs a function of ours where nothing may be thrown.
template <typename Function>
nibble_status Guard(const Function& function) noexcept {
  try {
    const Status status = function();
    return status ? NIBBLE_OK
                  : Failed(StatusOf(status.error().code()), status.error().message().c_str());
  } catch (const std::bad_alloc&) {
    return Failed(NIBBLE_OUT_OF_MEMORY, "the host is out of memory");
  } catch (const std::exception& error) {
    return Failed(NIBBLE_FAILED, error.what());
  }
}

Status RequirePointer(const void* pointer, std::string_view name) {
  if (pointer != nullptr) return {};
  return Fail(Code::kInvalidArgument, "{} is null", name);
}

Status RequireSize(int64_t value, std::string_view name) {
  if (value >= 1 && value <= kLargest) return {};
  return Fail(Code::kInvalidArgument, "{} is {}: 1 to {} are allowed", name, value, kLargest);
}

Status RequireStride(int64_t stride, int64_t width, std::string_view name) {
  if (stride >= width && stride <= kLargest) return {};
  return Fail(Code::kInvalidArgument, "{} is {}: rows of {} elements need at least as much", name,
              stride, width);
}

Status RequireWorkspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return {};
  NIBBLE_TRY(RequirePointer(workspace, "workspace"));
  if (bytes < needed)
    return Fail(Code::kInvalidArgument, "workspace has {} bytes: {} are needed", bytes, needed);
  if (reinterpret_cast<uintptr_t>(workspace) % kAlignment != 0)
    return Fail(Code::kInvalidArgument, "workspace is not aligned to {} bytes", kAlignment);
  return {};
}

// What a launch left behind.
Status LaunchStatus(const nibble_gpu& gpu) {
  const std::string failure = gpu.ops->device->failure();
  if (failure.empty()) return {};
  return Fail(Code::kInternal, "{}", failure);
}

Status Pack(nibble_gpu& gpu, const std::vector<QuantView>& parts, nibble_weight** weight) {
  NIBBLE_TRY(nibble::capi::SelectGpu(gpu.index));
  NIBBLE_ASSIGN(std::unique_ptr<PackedWeight> packed, gpu.ops->pack_weight({.parts = parts}));
  *weight = new nibble_weight{.packed = std::move(packed), .gpu = &gpu};
  return {};
}

Status PackNvfp4(nibble_gpu& gpu, const nibble_nvfp4* parts, size_t count, nibble_weight** weight) {
  std::vector<HostBytes> bytes;
  std::vector<QuantView> views;
  int64_t rows = 0;
  for (size_t i = 0; i < count; ++i) {
    const nibble_nvfp4& part = parts[i];
    NIBBLE_TRY(RequireSize(part.rows, "rows"));
    NIBBLE_TRY(RequireSize(part.columns, "columns"));
    NIBBLE_TRY(RequireSize(rows += part.rows, "the number of stacked rows"));
    NIBBLE_TRY(RequirePointer(part.codes, "codes"));
    NIBBLE_TRY(RequirePointer(part.scales, "scales"));
    QuantView view = {.format = WeightFormat::kNvfp4,
                      .n = part.rows,
                      .k = part.columns,
                      .global_scale = part.scale};
    NIBBLE_ASSIGN(HostBytes codes, nibble::capi::OnHost(part.codes, view.data_bytes()));
    NIBBLE_ASSIGN(HostBytes scales, nibble::capi::OnHost(part.scales, view.scale_bytes()));
    view.data = codes.data;
    view.scales = scales.data;
    views.push_back(view);
    bytes.push_back(std::move(codes));
    bytes.push_back(std::move(scales));
  }
  return Pack(gpu, views, weight);
}

// A weight of the block, of the given shape.
Result<const PackedWeight*> Take(nibble_moe& moe, const nibble_weight* weight, int64_t rows,
                                 int64_t columns, std::string_view name) {
  NIBBLE_TRY(RequirePointer(weight, name));
  if (weight->gpu != moe.gpu)
    return Fail(Code::kInvalidArgument, "{} was made with another nibble_gpu", name);
  const PackedWeight& packed = *weight->packed;
  if (packed.n() != rows || packed.k() != columns)
    return Fail(Code::kInvalidArgument, "{} is {} x {}: {} x {} is wanted", name, packed.n(),
                packed.k(), rows, columns);
  moe.weights.push_back(weight->packed);
  return &packed;
}

Result<ExpertWeights> TakeExpert(nibble_moe& moe, const nibble_weight* gate_up,
                                 const nibble_weight* down, int64_t hidden, std::string_view name) {
  const int64_t width = moe.config.width;
  ExpertWeights expert;
  NIBBLE_ASSIGN(expert.gate_up,
                Take(moe, gate_up, 2 * hidden, width, fmt::format("gate_up of {}", name)));
  NIBBLE_ASSIGN(expert.down, Take(moe, down, width, hidden, fmt::format("down of {}", name)));
  return expert;
}

Status CheckConfig(const nibble_moe_config& config) {
  if (config.struct_bytes != sizeof(nibble_moe_config))
    return Fail(Code::kInvalidArgument,
                "struct_bytes is {}: set it to sizeof(nibble_moe_config), {} in version {}",
                config.struct_bytes, sizeof(nibble_moe_config), NIBBLE_KERNELS_VERSION);
  NIBBLE_TRY(RequireSize(config.width, "width"));
  NIBBLE_TRY(RequireSize(config.hidden, "hidden"));
  NIBBLE_TRY(RequireSize(config.experts, "experts"));
  if (config.top_k < 1 || config.top_k > config.experts)
    return Fail(Code::kInvalidArgument, "top_k is {}: 1 to {}, the number of experts, are allowed",
                config.top_k, config.experts);
  if (config.score != NIBBLE_SOFTMAX && config.score != NIBBLE_SIGMOID)
    return Fail(Code::kInvalidArgument, "score is {}: 0 (softmax) and 1 (sigmoid) are allowed",
                static_cast<int>(config.score));
  NIBBLE_TRY(RequirePointer(config.gate_up, "gate_up"));
  NIBBLE_TRY(RequirePointer(config.down, "down"));
  const bool shared = config.shared_hidden > 0;
  if (config.shared_hidden < 0 || config.shared_hidden > kLargest)
    return Fail(Code::kInvalidArgument, "shared_hidden is {}: 0 to {} are allowed",
                config.shared_hidden, kLargest);
  if (!shared && (config.shared_gate_up != nullptr || config.shared_down != nullptr ||
                  config.shared_gate != nullptr))
    return Fail(Code::kInvalidArgument, "a shared expert with shared_hidden 0");
  return {};
}

Result<std::unique_ptr<nibble_moe>> MakeMoe(const nibble_gpu& gpu,
                                            const nibble_moe_config& config) {
  NIBBLE_TRY(CheckConfig(config));
  auto moe = std::make_unique<nibble_moe>(nibble_moe{.gpu = &gpu, .config = config});
  NIBBLE_ASSIGN(moe->router, Take(*moe, config.router, config.experts, config.width, "router"));
  for (int32_t e = 0; e < config.experts; ++e) {
    NIBBLE_ASSIGN(const ExpertWeights expert,
                  TakeExpert(*moe, config.gate_up[e], config.down[e], config.hidden,
                             fmt::format("expert {}", e)));
    moe->experts.push_back(expert);
  }
  if (config.shared_hidden > 0) {
    NIBBLE_ASSIGN(moe->shared, TakeExpert(*moe, config.shared_gate_up, config.shared_down,
                                          config.shared_hidden, "the shared expert"));
    if (config.shared_gate != nullptr) {
      NIBBLE_ASSIGN(moe->shared_gate,
                    Take(*moe, config.shared_gate, 1, config.width, "shared_gate"));
    }
  }
  NIBBLE_TRY(nibble::capi::SelectGpu(gpu.index));
  NIBBLE_ASSIGN(moe->prepared, gpu.ops->prepare_experts(moe->experts));
  gpu.ops->device->Synchronize();
  NIBBLE_TRY(LaunchStatus(gpu));
  return moe;
}

size_t MoeWorkspace(const nibble_moe& moe, int64_t tokens) {
  const nibble_moe_config& c = moe.config;
  return moe.gpu->ops->moe_workspace(1, MoeSizes{.t = tokens,
                                                 .d = c.width,
                                                 .f = std::max(c.hidden, c.shared_hidden),
                                                 .experts = c.experts,
                                                 .top_k = c.top_k});
}

bool IsSize(int64_t value) { return value >= 1 && value <= kLargest; }

}  // namespace

extern "C" {

int32_t nibble_version(void) { return NIBBLE_KERNELS_VERSION; }

const char* nibble_last_error(void) { return last_error.c_str(); }

nibble_status nibble_open(int32_t index, nibble_gpu** gpu) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(gpu, "gpu"));
    *gpu = nullptr;
    NIBBLE_ASSIGN(const OpTable* ops, nibble::kernels::CudaOps(index));
    static std::atomic<int> opened = -1;
    int none = -1;
    if (!opened.compare_exchange_strong(none, index) && none != index)
      return Fail(Code::kUnsupported, "GPU {} is in use by this process: one GPU per process",
                  none);
    *gpu = new nibble_gpu{
        .ops = ops,
        .index = index,
        .name = fmt::format("{}, {}", ops->device->name(), ops->variant),
    };
    return {};
  });
}

void nibble_close(nibble_gpu* gpu) { delete gpu; }

const char* nibble_gpu_name(const nibble_gpu* gpu) {
  return gpu == nullptr ? "" : gpu->name.c_str();
}

nibble_status nibble_weight_nvfp4(nibble_gpu* gpu, const nibble_nvfp4* parts, size_t count,
                                  nibble_weight** weight) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(weight, "weight"));
    *weight = nullptr;
    NIBBLE_TRY(RequirePointer(gpu, "gpu"));
    NIBBLE_TRY(RequirePointer(parts, "parts"));
    NIBBLE_TRY(RequireSize(static_cast<int64_t>(std::min<size_t>(count, SIZE_MAX / 2)), "count"));
    return PackNvfp4(*gpu, parts, count, weight);
  });
}

nibble_status nibble_weight_bf16(nibble_gpu* gpu, int64_t rows, int64_t columns, const void* values,
                                 nibble_weight** weight) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(weight, "weight"));
    *weight = nullptr;
    NIBBLE_TRY(RequirePointer(gpu, "gpu"));
    NIBBLE_TRY(RequireSize(rows, "rows"));
    NIBBLE_TRY(RequireSize(columns, "columns"));
    NIBBLE_TRY(RequirePointer(values, "values"));
    QuantView view = {.format = WeightFormat::kBf16, .n = rows, .k = columns};
    NIBBLE_ASSIGN(const HostBytes bytes, nibble::capi::OnHost(values, view.data_bytes()));
    view.data = bytes.data;
    return Pack(*gpu, {view}, weight);
  });
}

int64_t nibble_weight_bytes(const nibble_weight* weight) {
  return weight == nullptr ? 0 : weight->packed->bytes();
}

void nibble_weight_destroy(nibble_weight* weight) { delete weight; }

size_t nibble_linear_workspace(const nibble_gpu* gpu, int64_t tokens, int64_t columns) {
  if (gpu == nullptr || !IsSize(tokens) || !IsSize(columns)) return 0;
  return gpu->ops->linear_workspace(tokens, columns);
}

nibble_status nibble_linear(nibble_gpu* gpu, const nibble_weight* weight, int64_t tokens,
                            const void* x, int64_t x_stride, void* y, int64_t y_stride,
                            void* workspace, size_t workspace_bytes, void* stream) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(gpu, "gpu"));
    NIBBLE_TRY(RequirePointer(weight, "weight"));
    NIBBLE_TRY(RequirePointer(x, "x"));
    NIBBLE_TRY(RequirePointer(y, "y"));
    NIBBLE_TRY(RequireSize(tokens, "tokens"));
    if (weight->gpu != gpu)
      return Fail(Code::kInvalidArgument, "the weight was made with another nibble_gpu");
    const PackedWeight& packed = *weight->packed;
    NIBBLE_TRY(RequireStride(x_stride, packed.k(), "x_stride"));
    NIBBLE_TRY(RequireStride(y_stride, packed.n(), "y_stride"));
    NIBBLE_TRY(RequireWorkspace(workspace, workspace_bytes,
                                gpu->ops->linear_workspace(tokens, packed.k())));
    NIBBLE_TRY(nibble::capi::SelectGpu(gpu->index));
    gpu->ops->linear({.stream = stream,
                      .workspace = static_cast<std::byte*>(workspace),
                      .workspace_bytes = workspace_bytes},
                     {.x = static_cast<const uint16_t*>(x),
                      .x_stride = x_stride,
                      .weight = &packed,
                      .y = static_cast<uint16_t*>(y),
                      .y_stride = y_stride,
                      .m = tokens});
    return LaunchStatus(*gpu);
  });
}

nibble_status nibble_moe_create(nibble_gpu* gpu, const nibble_moe_config* config,
                                nibble_moe** moe) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(moe, "moe"));
    *moe = nullptr;
    NIBBLE_TRY(RequirePointer(gpu, "gpu"));
    NIBBLE_TRY(RequirePointer(config, "config"));
    NIBBLE_ASSIGN(std::unique_ptr<nibble_moe> made, MakeMoe(*gpu, *config));
    *moe = made.release();
    return {};
  });
}

void nibble_moe_destroy(nibble_moe* moe) { delete moe; }

size_t nibble_moe_workspace(const nibble_moe* moe, int64_t tokens) {
  return moe == nullptr || !IsSize(tokens) ? 0 : MoeWorkspace(*moe, tokens);
}

nibble_status nibble_moe_run(const nibble_moe* moe, int64_t tokens, const void* x, void* y,
                             void* workspace, size_t workspace_bytes, void* stream) {
  return Guard([&]() -> Status {
    NIBBLE_TRY(RequirePointer(moe, "moe"));
    NIBBLE_TRY(RequirePointer(x, "x"));
    NIBBLE_TRY(RequirePointer(y, "y"));
    NIBBLE_TRY(RequireSize(tokens, "tokens"));
    NIBBLE_TRY(RequireWorkspace(workspace, workspace_bytes, MoeWorkspace(*moe, tokens)));
    NIBBLE_TRY(nibble::capi::SelectGpu(moe->gpu->index));
    const nibble_moe_config& config = moe->config;
    moe->gpu->ops->moe({.stream = stream,
                        .workspace = static_cast<std::byte*>(workspace),
                        .workspace_bytes = workspace_bytes},
                       {.x = static_cast<const uint16_t*>(x),
                        .t = tokens,
                        .d = config.width,
                        .router = moe->router,
                        .routing = {.experts = config.experts,
                                    .top_k = config.top_k,
                                    .score = config.score == NIBBLE_SOFTMAX ? RouterScore::kSoftmax
                                                                            : RouterScore::kSigmoid,
                                    .choice_bias = config.choice_bias,
                                    .renormalize = config.renormalize != 0,
                                    .scale = config.routed_scale},
                        .experts = moe->experts,
                        .f = config.hidden,
                        .shared = moe->shared,
                        .shared_f = config.shared_hidden,
                        .shared_gate = moe->shared_gate,
                        .prepared = moe->prepared.get(),
                        .out = static_cast<uint16_t*>(y)});
    return LaunchStatus(*moe->gpu);
  });
}

}  // extern "C"
