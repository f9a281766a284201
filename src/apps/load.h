// From a MODEL argument to a running engine: what serve, chat, run and bench share.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "apps/options.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "formats/checkpoint.h"
#include "kernels/op_probe.h"
#include "text/tokenizer.h"

namespace nibble::apps {

struct LoadedModel {
  std::unique_ptr<ThreadPool> pool;  // outlives the engine
  std::shared_ptr<engine::Engine> engine;
  std::string path;  // the resolved folder or file
  std::string tokenizer_config_json;
  std::string special_tokens_map_json;
  std::string generation_config_json;
  std::string chat_template;      // "" if the checkpoint has none
  std::string tool_use_template;  // of requests with tools; "" where it is the same
  double read_bandwidth = 0;      // bytes per second, measured at start
  std::string activations;        // "int16", "int8" or "bf16": what was chosen
  std::string device;             // "cpu", "cuda:0 (NVIDIA H200)"

  ~LoadedModel() { engine.reset(); }
  LoadedModel() = default;
  LoadedModel(LoadedModel&&) = default;
  LoadedModel& operator=(LoadedModel&&) = default;
};

// stage: told how far loading is ("loading weights", 0.4); may be empty.
using StageCallback = std::function<void(std::string_view stage, double fraction)>;

// Which checkpoint a command works on.
struct OpenModelOptions {
  std::string load_format = "auto";
  std::string dummy_policy = "config";
  uint64_t dummy_seed = 2;
  int64_t dummy_layers = 0;  // 0: all
  std::string quantization;
  // A folder with a config and no weights is described by its config: for commands that read no
  // values. Others ask for --load-format dummy.
  bool describe_only = false;
  ThreadPool* pool = nullptr;  // makes dummy weights; may be null
};

// path: as formats::ResolveModel gives it.
Result<std::unique_ptr<formats::Checkpoint>> OpenModel(const std::string& path,
                                                       const OpenModelOptions& options);

// Bytes of all tensors as stored.
int64_t StoredBytes(const formats::Checkpoint& checkpoint);

// Opens, checks, loads and plans; prints the kernels, the memory plan and the bytes per token.
// observer: hears the inputs of every linear; outlives the model. probe: of the device's ops;
// outlives the model.
Result<LoadedModel> LoadEngine(const ModelOptions& options, const StageCallback& stage = {},
                               models::LinearObserver* observer = nullptr,
                               kernels::OpProbe* probe = nullptr);
// The ops that --device and --cpu-isa mean.
Result<const kernels::OpTable*> ChooseOps(const std::string& device,
                                          const std::string& cpu_isa = "auto");

// "42 tokens, 81.3 tokens/s, 12.3 ms/token, 6.2 GB/s (78 % of 8.0 GB/s)": how a generation ends.
std::string SpeedLine(const LoadedModel& model, int64_t tokens, double seconds);

// Prints an error for people and returns the exit status.
int Report(const Error& error);

}  // namespace nibble::apps
