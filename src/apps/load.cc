#include "apps/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "device/cpu.h"
#include "device/cpu_places.h"
#include "engine/memory_plan.h"
#include "formats/hf_checkpoint.h"
#include "formats/hub.h"
#include "models/dummy_checkpoint.h"
#include "models/model.h"
#include "text/answer_parser.h"
#include "text/chat_template_source.h"

namespace nibble::apps {
namespace {

using kernels::ActivationFormat;
using kernels::KvFormat;

Result<ActivationFormat> ParseActivations(const std::string& name) {
  // int8 is the fastest, but flips a greedy token of one golden where the original has a clear lead
  // (models/golden_test.cc); int16 is within the rounding of BF16 and far ahead of bf16's FP32.
  if (name == "auto" || name == "int16") return ActivationFormat::kInt16;
  if (name == "bf16") return ActivationFormat::kBf16;
  if (name == "int8") return ActivationFormat::kInt8;
  if (name == "requantized") return ActivationFormat::kRequantized;
  return Fail(Code::kInvalidArgument,
              "--cpu-activations {}: expected auto, bf16, int16, int8 or requantized", name);
}

Result<KvFormat> ParseKvFormat(const std::string& name) {
  if (name == "auto" || name == "bf16" || name == "bfloat16") return KvFormat::kBf16;
  if (name == "fp8" || name == "fp8_e4m3") return KvFormat::kFp8;
  if (name == "nvfp4") return KvFormat::kNvfp4;
  return Fail(Code::kInvalidArgument, "--kv-cache-dtype {}: expected auto, bf16, fp8 or nvfp4",
              name);
}

// A file that a checkpoint need not have.
Result<std::optional<std::string>> ReadOptional(const formats::Checkpoint& checkpoint,
                                                std::string_view name) {
  auto text = checkpoint.ReadText(name);
  if (text) return std::move(*text);
  if (text.error().code() == Code::kNotFound) return std::nullopt;
  return tl::unexpected(text.error());
}

// dummy: a checkpoint of made-up weights may come without a tokenizer.
Result<std::shared_ptr<const text::Tokenizer>> LoadTokenizer(const formats::Checkpoint& checkpoint,
                                                             const std::string& config_json,
                                                             int64_t vocab_size, bool dummy) {
  text::TokenizerFiles files{.tokenizer_config_json = config_json};
  bool found = false;
  const std::pair<const char*, std::string*> sources[] = {
      {"tokenizer.json", &files.tokenizer_json},
      {"tekken.json", &files.tekken_json},
      {"tiktoken.model", &files.tiktoken_model}};
  for (const auto& [name, content] : sources) {
    NIBBLE_ASSIGN(std::optional<std::string> text, ReadOptional(checkpoint, name));
    if (!text) continue;
    *content = *std::move(text);
    found = true;
    break;
  }
  if (dummy && !found) {
    LogWarning("{}: no tokenizer files: only token ids are accepted, text is refused",
               checkpoint.path());
    return std::make_shared<const text::Tokenizer>(text::Tokenizer::IdsOnly(vocab_size));
  }
  auto tokenizer = text::Tokenizer::Load(files);
  if (!tokenizer) return tl::unexpected(tokenizer.error().Context(checkpoint.path()));
  auto fits = tokenizer->CheckFits(vocab_size);
  if (!fits) return tl::unexpected(fits.error().Context(checkpoint.path()));
  return std::make_shared<const text::Tokenizer>(std::move(*tokenizer));
}

// The usual template, and that of requests with tools where it is another one.
Status FindChatTemplates(const formats::Checkpoint& checkpoint,
                         std::optional<std::string> tokenizer_config, LoadedModel* loaded) {
  text::ChatTemplateFiles files{.tokenizer_config_json = std::move(tokenizer_config)};
  NIBBLE_ASSIGN(files.chat_template_jinja, ReadOptional(checkpoint, "chat_template.jinja"));
  NIBBLE_ASSIGN(files.chat_template_json, ReadOptional(checkpoint, "chat_template.json"));
  NIBBLE_ASSIGN(std::optional<std::string> tool_use,
                ReadOptional(checkpoint, "additional_chat_templates/tool_use.jinja"));
  if (tool_use) files.additional.emplace_back("tool_use", *std::move(tool_use));
  NIBBLE_ASSIGN(const text::ChatTemplateSources sources, text::ChatTemplateSources::Load(files));
  if (sources.empty()) return {};
  NIBBLE_ASSIGN(loaded->chat_template, sources.Select(false));
  NIBBLE_ASSIGN(loaded->tool_use_template, sources.Select(true));
  if (loaded->tool_use_template == loaded->chat_template) loaded->tool_use_template.clear();
  return {};
}

void PrintSummary(const LoadedModel& model, const kernels::OpTable& ops) {
  const models::ModelInfo& info = model.engine->model_info();
  LogInfo("{}: {}; {} of weights", info.architecture, info.weight_summary,
          FormatBytes(static_cast<double>(info.weight_bytes)));
  if (ops.device->host_memory()) {
    LogInfo("kernels: {} {}, activations {}, {} threads ({})", ops.backend, ops.variant,
            model.activations, model.pool->threads(), GetCpuInfo().model);
  } else {
    LogInfo("kernels: {} {}, on {}", ops.backend, ops.variant, ops.device->name());
  }
  LogInfo(
      "{:.1f} MB read per token; memory reads at {:.1f} GB/s: at most {:.0f} tokens/s for one "
      "request",
      static_cast<double>(info.bytes_per_token) / 1e6, model.read_bandwidth / 1e9,
      model.read_bandwidth / static_cast<double>(info.bytes_per_token));
  std::fputs(model.engine->memory_plan().ToString().c_str(), stderr);
}

// A small model is read from a large cache in part, and so is its probe; a large one is not.
int64_t ProbeBytes(const models::ModelInfo& info) {
  return std::clamp(info.weight_bytes, int64_t{1} << 27, int64_t{1} << 29);
}

}  // namespace

Result<std::unique_ptr<formats::Checkpoint>> OpenModel(const std::string& path,
                                                       const OpenModelOptions& options) {
  const std::string& format = options.load_format;
  if (format != "auto" && format != "safetensors" && format != "gguf" && format != "dummy") {
    return Fail(Code::kInvalidArgument,
                "--load-format {}: expected auto, safetensors, gguf or dummy", format);
  }
  if (options.dummy_policy != "config" && options.dummy_policy != "all-4bit") {
    return Fail(Code::kInvalidArgument, "--dummy-policy {}: expected config or all-4bit",
                options.dummy_policy);
  }
  const bool all_4bit = options.dummy_policy == "all-4bit";
  const bool folder = IsDirectory(path);
  const bool describe =
      options.describe_only && format == "auto" && folder && !formats::HasShards(path);
  if (format != "dummy" && !describe) {
    if (all_4bit) {
      return Fail(Code::kInvalidArgument,
                  "--dummy-policy all-4bit: {} is loaded as it is stored; the option goes with "
                  "--load-format dummy",
                  path);
    }
    return formats::OpenCheckpoint(path, {.quantization = options.quantization});
  }
  if (!folder) {
    return Fail(Code::kInvalidArgument, "--load-format dummy: {} is not a folder with config.json",
                path);
  }
  return models::OpenDummyCheckpoint(
      path,
      {.policy = all_4bit ? models::DummyPolicy::kAllFourBit : models::DummyPolicy::kAsConfigured,
       .seed = options.dummy_seed,
       .layers = options.dummy_layers,
       .pool = options.pool},
      options.quantization);
}

// Who asks for FP8 activations gets them or is told why not.
Status CheckFp8Prompts(const models::Model& model) {
  if (model.info().prompt_forms.fp8) return {};
  if (model.ops().linear_fp8 == nullptr) {
    return Fail(
        Code::kUnsupported,
        "--activations fp8: {} has no kernels for it (compute capability 9.0 has); use auto",
        model.ops().device->name());
  }
  return Fail(Code::kUnsupported,
              "--activations fp8: no linear of this model has FP8 weights with scales per tensor, "
              "row or 128 columns; use auto");
}

std::string PromptActivations(const models::PromptForms& forms) {
  return fmt::format("{} of prompts, bf16 of answers", !forms.fp8   ? "nvfp4"
                                                       : forms.w4a4 ? "nvfp4 and fp8"
                                                                    : "fp8");
}

int64_t StoredBytes(const formats::Checkpoint& checkpoint) {
  int64_t bytes = 0;
  for (const formats::TensorEntry& entry : checkpoint.tensors()) bytes += entry.stored_bytes;
  return bytes;
}

int Report(const Error& error) {
  LogError("{}", error.message());
  if (error.code() == Code::kCancelled) return 130;  // as shells say of an interrupted command
  return error.code() == Code::kInvalidArgument || error.code() == Code::kUnsupported ? 2 : 1;
}

// --device auto, cpu, cuda or cuda:N. auto: the first GPU, if there is one that can be used and no
// instruction set of the CPU is asked for.
Result<const kernels::OpTable*> ChooseOps(const std::string& device, const std::string& cpu_isa) {
  if (cpu_isa != "auto") {
    if (device != "cpu" && device != "auto") {
      return Fail(Code::kInvalidArgument, "--cpu-isa {}: goes with --device cpu, not {}", cpu_isa,
                  device);
    }
    auto ops = kernels::CpuOpsVariant(cpu_isa);
    if (!ops) return tl::unexpected(ops.error().Context("--cpu-isa"));
    return *ops;
  }
  if (device == "cpu") return &kernels::CpuOps();
  if (device == "auto") {
    const auto ops = kernels::CudaOps();
    if (ops) return *ops;
    LogInfo("{}", ops.error().message());
    return &kernels::CpuOps();
  }
  int index = 0;
  if (device != "cuda") {
    const std::string_view number =
        device.starts_with("cuda:") ? std::string_view(device).substr(5) : std::string_view();
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
    if (number.empty() || error != std::errc() || end != number.data() + number.size()) {
      return Fail(Code::kInvalidArgument, "--device {}: expected auto, cpu, cuda or cuda:N",
                  device);
    }
  }
  const auto ops = kernels::CudaOps(index);
  if (!ops)
    return Fail(Code::kUnsupported, "--device {}: {}; use --device cpu", device,
                ops.error().message());
  return *ops;
}

Result<LoadedModel> LoadEngine(const ModelOptions& options, const StageCallback& stage,
                               models::LinearObserver* observer, kernels::OpProbe* probe) {
  const auto tell = [&](std::string_view name, double fraction) {
    if (stage) stage(name, fraction);
  };
  NIBBLE_ASSIGN(const kernels::OpTable* const ops,
                options.reference ? Result<const kernels::OpTable*>(&kernels::RefOps())
                                  : ChooseOps(options.device, options.cpu_isa));
  NIBBLE_ASSIGN(const ActivationFormat activations, ParseActivations(options.cpu_activations));
  NIBBLE_ASSIGN(const KvFormat kv_format, ParseKvFormat(options.kv_cache_dtype));

  LoadedModel loaded;
  tell("finding the model", 0);
  NIBBLE_ASSIGN(loaded.path, formats::ResolveModel(options.model));
  loaded.pool = MakeThreadPool(options.threads);
  NIBBLE_ASSIGN(
      const std::unique_ptr<formats::Checkpoint> checkpoint,
      OpenModel(loaded.path, {.load_format = options.load_format,
                              .dummy_policy = options.dummy_policy,
                              .dummy_seed = options.dummy_seed,
                              .dummy_layers = options.dummy_layers,
                              .quantization = options.quantization,
                              // Elsewhere weights are loaded side by side on that pool.
                              .pool = ops->device->host_memory() ? loaded.pool.get() : nullptr}));
  NIBBLE_ASSIGN(const models::ModelInfo described, models::DescribeModel(*checkpoint));

  NIBBLE_ASSIGN(std::optional<std::string> tokenizer_config,
                ReadOptional(*checkpoint, "tokenizer_config.json"));
  NIBBLE_ASSIGN(const std::optional<std::string> generation_config,
                ReadOptional(*checkpoint, "generation_config.json"));
  NIBBLE_ASSIGN(const std::optional<std::string> special_tokens_map,
                ReadOptional(*checkpoint, "special_tokens_map.json"));
  loaded.tokenizer_config_json = tokenizer_config.value_or("");
  loaded.special_tokens_map_json = special_tokens_map.value_or("");
  loaded.generation_config_json = generation_config.value_or("");
  NIBBLE_ASSIGN(auto tokenizer,
                LoadTokenizer(*checkpoint, loaded.tokenizer_config_json, described.vocab_size,
                              options.load_format == "dummy"));
  NIBBLE_TRY(FindChatTemplates(*checkpoint, std::move(tokenizer_config), &loaded));
  std::vector<int32_t> stop_ids = formats::StopTokenIds(*checkpoint);
  for (const int32_t id : text::FormatStopIds(*tokenizer)) {
    if (std::ranges::find(stop_ids, id) == stop_ids.end()) stop_ids.push_back(id);
  }

  if (observer != nullptr && !ops->device->host_memory()) {
    return Fail(Code::kUnsupported,
                "--device {}: calibration reads activations on the host; use "
                "--device cpu",
                options.device);
  }
  loaded.device = ops->device->name();
  loaded.activations = ops->device->host_memory() ? ActivationFormatName(activations) : "bf16";
  tell("measuring memory", 0);
  loaded.read_bandwidth = ops->read_bandwidth != nullptr
                              ? ops->read_bandwidth()
                              : MeasureReadBandwidth(*loaded.pool, ProbeBytes(described));

  NIBBLE_TRY(engine::CheckWeightsFit(
      {.weight_bytes = described.weight_bytes,
       .device = ops->device->name(),
       .available_bytes = ops->device->memory().free_bytes,
       .host_available_bytes = ops->device->host_memory() ? 0 : HostDevice().memory().free_bytes},
      options.memory_utilization));
  std::unique_ptr<models::Model> model;
  const auto start = std::chrono::steady_clock::now();
  {
    tell("loading weights", 0);
    Progress progress("loading weights", StoredBytes(*checkpoint));
    NIBBLE_ASSIGN(model, models::LoadModel(*checkpoint,
                                           {.ops = probe != nullptr ? &probe->table() : ops,
                                            .pool = loaded.pool.get(),
                                            .activations = activations,
                                            .prompt_forms = {.w4a4 = options.activations != "16",
                                                             .fp8 = options.activations == "fp8"},
                                            .max_positions = options.max_model_len,
                                            .progress = &progress,
                                            .observer = observer}));
  }
  if (options.activations == "fp8") NIBBLE_TRY(CheckFp8Prompts(*model));
  if (model->info().prompt_forms.any())
    loaded.activations = PromptActivations(model->info().prompt_forms);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LogInfo("loaded {} in {:.1f} s, {:.2f} GB/s",
          FormatBytes(static_cast<double>(model->info().weight_bytes)), seconds,
          static_cast<double>(model->info().weight_bytes) / seconds / 1e9);
  tell("planning memory", 1);
  NIBBLE_ASSIGN(loaded.engine,
                engine::Engine::Create(std::move(model), std::move(tokenizer),
                                       {.max_model_len = options.max_model_len,
                                        .max_sequences = options.max_num_seqs,
                                        .max_step_tokens = options.max_num_batched_tokens,
                                        .max_queued = options.max_num_queued_reqs,
                                        .page_size = options.block_size,
                                        .kv_format = kv_format,
                                        .kv_bytes = options.kv_cache_memory_bytes,
                                        .memory_fraction = options.memory_utilization,
                                        .prefix_cache = options.prefix_caching,
                                        .eos_token_ids = stop_ids,
                                        .even_routing = options.even_routing,
                                        .pool = loaded.pool.get()}));
  PrintSummary(loaded, *ops);
  return loaded;
}

std::string SpeedLine(const LoadedModel& model, int64_t tokens, double seconds) {
  const double rate = seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  const double bandwidth = rate * static_cast<double>(model.engine->model_info().bytes_per_token);
  return fmt::format(
      "{} tokens, {:.1f} tokens/s, {:.2f} ms/token, {:.1f} GB/s ({:.0f} % of {:.1f} GB/s)", tokens,
      rate, rate > 0 ? 1e3 / rate : 0, bandwidth / 1e9, 100 * bandwidth / model.read_bandwidth,
      model.read_bandwidth / 1e9);
}

}  // namespace nibble::apps
