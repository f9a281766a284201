// The options of every command, as plain structs: cli.cc fills them from the command line, the
// commands read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::apps {

// What every command that loads a model takes.
struct ModelOptions {
  std::string model;                     // folder, .gguf file, or org/name[@revision]
  std::string load_format = "auto";      // auto, safetensors, gguf, dummy
  std::string dummy_policy = "config";   // of --load-format dummy: config, all-4bit
  uint64_t dummy_seed = 2;               // of --load-format dummy
  std::string device = "auto";           // auto, cpu, cuda, cuda:N
  std::string cpu_isa = "auto";          // auto, or a variant of kernels::CpuOpsVariant
  int threads = 0;                       // 0: what affinity and cgroup limits allow
  std::string cpu_activations = "auto";  // auto, bf16, int16, int8, requantized
  std::string activations = "auto";      // auto, fp8, 16
  std::string kv_cache_dtype = "auto";   // auto, bf16, fp8, nvfp4
  std::string quantization;              // a cross-check, "" for none
  int64_t max_model_len = 0;             // 0: what the model allows and the memory fits
  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 0;
  int32_t max_num_queued_reqs = -1;  // -1: 4 * max_num_seqs
  int32_t block_size = 16;
  int64_t kv_cache_memory_bytes = 0;  // 0: planned
  double memory_utilization = 0.9;    // of what is available
  bool prefix_caching = true;
  bool even_routing = false;  // EngineOptions.even_routing
  int64_t dummy_layers = 0;   // DummyOptions.layers
  bool reference = false;     // the reference's ops, on the host, instead of the device's
};

struct ServeOptions {
  ModelOptions model;
  std::vector<std::string> served_model_names;
  std::string host = "127.0.0.1";
  int port = 8000;
  std::vector<std::string> api_keys;
  std::vector<std::string> allowed_origins;
  std::vector<std::string> allowed_hosts;
  std::string chat_template;  // a file
  std::string default_chat_template_kwargs;
  std::string tool_parser = "auto";
  std::string reasoning_parser = "auto";
  std::string generation_config = "auto";  // auto: the model's; vllm: neutral defaults
  std::string override_generation_config;
  int32_t max_logprobs = 20;
  double request_timeout = 0;    // seconds, 0: none
  double shutdown_timeout = 30;  // seconds
};

struct ChatOptions {
  ModelOptions model{.max_num_seqs = 1};
  std::string system;
  float temperature = -1;  // below 0: the model's
  int64_t max_tokens = -1;
};

struct RunOptions {
  ModelOptions model{.max_num_seqs = 1};
  std::string prompt;  // "-": standard input
  bool raw = false;    // no chat template
  float temperature = -1;
  int64_t max_tokens = -1;
  int64_t seed = -1;
};

struct BenchModelOptions {
  ModelOptions model{.max_num_seqs = 1};  // at least the batch
  std::vector<int64_t> prompts = {512};
  std::vector<int32_t> batches = {1};
  std::vector<int64_t> contexts = {0};  // tokens assumed in the cache before the prompt
  int64_t decode = 128;
  int repeat = 3;
  bool profile = false;
  bool mixed = false;  // a prompt arrives beside answers
  bool check = false;  // the first layers beside the reference's
  double temperature = 0;
  double top_p = 1;
  bool json = false;
};

struct BenchKernelsOptions {
  std::string device = "cpu";   // auto, cpu, cuda, cuda:N
  std::vector<int64_t> tokens;  // empty: the defaults of either kind of device
  // Of GPUs: kernels::OpBenchOptions.
  std::vector<std::string> ops = {"linear", "moe", "attention"};
  std::vector<std::string> shapes;
  std::vector<int64_t> contexts = {1024, 32768};
  std::string format = "nvfp4";
  // Of the CPU: kernels::LinearBenchOptions.
  std::vector<int> threads = {1};
  std::string variant;
  std::vector<std::string> kernels;
  int64_t stream_bytes = 0;
  int64_t batch_n = 8192;
  int64_t k = 4096;
  std::string plot;  // "": none
  bool json = false;
};

struct InspectOptions {
  std::string model;
  std::string load_format = "auto";
  std::string dummy_policy = "config";
  std::string kv_cache_dtype = "auto";  // auto: what the checkpoint says, else bf16
  std::string quantization;             // a cross-check, "" for none
  int64_t context = 1024;               // tokens in the cache
  int threads = 0;
  bool tensors = false;  // list every tensor
  bool json = false;
};

struct QuantizeOptions {
  std::string source;
  std::string destination;
  std::string format = "nvfp4";    // nvfp4, mxfp4, int4, fp8, bf16
  std::string method = "mse";      // max, mse, four-over-six
  std::string layout = "auto";     // auto, modelopt, compressed-tensors
  std::string rounding = "cuda";   // cuda, cpu
  std::string policy = "default";  // default, feed-forward, everything
  std::vector<std::string> keep;   // name fragments that stay as they are
  std::vector<std::string> also;   // name fragments that the policy keeps and these do not
  bool lm_head = false;            // quantise lm_head too
  bool calibrate = false;          // activation scales from `text`
  bool smooth = false;             // AWQ-style smoothing where it helps; calibrates
  int threads = 0;
  bool perplexity = false;  // of source and result, over `text`
  std::string text;         // a file; "" for the built-in sample
  bool force = false;       // replace an existing destination
  bool dummy = false;       // source is a folder with a config: its weights are made up
  std::string dummy_policy = "config";
  uint64_t dummy_seed = 2;
};

struct EvalOptions {
  ModelOptions model;
  std::string reference;  // "" for none
  std::string text;       // a file; "" for the built-in sample
  int64_t window = 512;   // tokens
  bool json = false;
};

struct PullOptions {
  std::string model;
};

// One function per command: returns the exit status.
int Serve(const ServeOptions& options);
int Chat(const ChatOptions& options);
int RunOnce(const RunOptions& options);
int BenchModel(const BenchModelOptions& options);
int BenchKernels(const BenchKernelsOptions& options);
int Inspect(const InspectOptions& options);
int Quantize(const QuantizeOptions& options);
int Eval(const EvalOptions& options);
int Pull(const PullOptions& options);
int Doctor(bool report);

// Parses the command line and runs the command. The whole program but for main's exception border.
int RunCommandLine(int argc, char** argv);

}  // namespace nibble::apps
