// The command line: every option of every command, with help that teaches by example. The only file
// that sees CLI11.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "apps/options.h"

namespace nibble::apps {
namespace {

constexpr const char* kOverview =
    R"(nibble: an inference engine and OpenAI-compatible server for NVFP4 language models.

MODEL is a folder with config.json, a .gguf file, or org/name[@revision] of the Hugging Face hub.
With --load-format dummy a config.json alone is enough: configs/ has those of published models.

Examples:
  nibble serve models/SmolLM2-135M-Instruct-NVFP4
  nibble chat nvidia/Qwen3-8B-NVFP4
  nibble run model.gguf "Why is the sky blue?"
  nibble quantize model.gguf models/mine-NVFP4 --method mse --perplexity
  nibble inspect models/mine-NVFP4)";

// "32k" and "1M" as vLLM reads them: k and m are decimal, K and M binary.
std::string ParseSize(std::string& text) {
  if (text.empty()) return "a number is missing";
  int64_t factor = 1;
  switch (text.back()) {
    case 'k':
      factor = 1000;
      break;
    case 'K':
      factor = 1024;
      break;
    case 'm':
      factor = 1000 * 1000;
      break;
    case 'M':
      factor = 1024 * 1024;
      break;
    case 'g':
      factor = 1000 * 1000 * 1000;
      break;
    case 'G':
      factor = 1024 * 1024 * 1024;
      break;
    default:
      break;
  }
  if (text == "auto" || text == "-1") {
    text = "0";
    return "";
  }
  const std::string digits = factor == 1 ? text : text.substr(0, text.size() - 1);
  if (digits.empty() || digits.size() > 12 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    return text + ": expected a number such as 4096, 32k or 1M, or auto";
  }
  text = std::to_string(std::stoll(digits) * factor);
  return "";
}

const CLI::Validator kSize(ParseSize, "SIZE");

void AddLoadFormat(CLI::App* command, std::string* load_format, std::string* dummy_policy) {
  command
      ->add_option("--load-format", *load_format,
                   "auto, safetensors, gguf, or dummy: random weights of config.json's shapes and "
                   "formats, for measurements")
      ->capture_default_str();
  command
      ->add_option("--dummy-policy", *dummy_policy,
                   "formats of dummy weights: config (as published) or all-4bit (every linear)")
      ->capture_default_str();
}

void AddModelOptions(CLI::App* command, ModelOptions* o, bool positional = true) {
  if (positional)
    command->add_option("MODEL", o->model, "folder, .gguf file or org/name[@revision]")->required();
  AddLoadFormat(command, &o->load_format, &o->dummy_policy);
  command->add_option("--dummy-seed", o->dummy_seed, "seed of dummy weights")
      ->capture_default_str();
  command->add_option("--device", o->device, "auto (a GPU if there is one), cpu, cuda or cuda:N")
      ->capture_default_str();
  command
      ->add_option("-t,--threads", o->threads,
                   "compute threads; 0: what affinity and cgroup limits allow")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option(
          "--cpu-isa", o->cpu_isa,
          "instruction set of the CPU's kernels: amx, avx512, avx512bf16, avx2, neon, i8mm or "
          "generic; auto: the fastest that this processor runs (nibble doctor)")
      ->capture_default_str();
  command
      ->add_option(
          "--cpu-activations", o->cpu_activations,
          "of linears with 4-bit weights: bf16 (products exact to the last bits of FP32 sums), "
          "int16 (16-bit integers with a scale per 32 values, close to exact and 1.6 times as fast "
          "at prompts), int8 (likewise in 8 bits, the fastest that is exact in the batch) or "
          "requantized (int8, and prompts of 32 tokens and more meet weights rounded to 8 bits per "
          "128 values, on AVX-512 alone: answers then depend on how prompts are cut into steps; KL "
          "divergence of SmolLM2-135M NVFP4 from BF16 0.196 nats per token instead of 0.184 with "
          "bf16 and 0.186 with int8); auto is int16")
      ->capture_default_str();
  command
      ->add_option(
          "--activations", o->activations,
          "of linears on GPUs: auto (where the GPU multiplies FP4, tokens of prompts meet "
          "NVFP4 weights in NVFP4 if the checkpoint has scales for it, generated ones in 16 "
          "bits), fp8 (as auto, and on GPUs of compute capability 9.0 tokens of prompts "
          "meet FP8 weights in E4M3, faster for long prompts and less exact; experts stay "
          "in 16 bits) or 16 (all of them in 16 bits)")
      ->check(CLI::IsMember({"auto", "fp8", "16"}))
      ->capture_default_str();
  command
      ->add_option("--kv-cache-dtype", o->kv_cache_dtype,
                   "auto (bf16), bf16, fp8 or nvfp4 (4.5 bits per number, a scale per 16: least "
                   "memory, least exact, docs/kernels.md)")
      ->capture_default_str();
  command->add_option("--quantization,-q", o->quantization,
                      "a cross-check: an error if the stored tensors are of another format");
  command
      ->add_option("--max-model-len", o->max_model_len,
                   "context length: 4096, 32k, auto (what fits)")
      ->transform(kSize);
  command->add_option("--max-num-seqs", o->max_num_seqs, "sequences that run at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--max-num-batched-tokens", o->max_num_batched_tokens,
                   "tokens per step: the chunk of a prompt; 0: 8192 on a GPU, less where memory is "
                   "short, and 512 on a CPU")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command
      ->add_option("--max-num-queued-reqs", o->max_num_queued_reqs,
                   "requests that may wait; -1: 4 * max-num-seqs")
      ->check(CLI::Range(-1, 1 << 20))
      ->capture_default_str();
  command->add_option("--block-size", o->block_size, "tokens per KV page: a power of two, 16..256")
      ->check(CLI::IsMember({16, 32, 64, 128, 256}))
      ->capture_default_str();
  command
      ->add_option(
          "--kv-cache-memory-bytes", o->kv_cache_memory_bytes,
          "KV cache: 512M, 4G; 0: in a GPU's own memory a whole context per sequence, as far "
          "as the plan may go; else one context or 1024 tokens per sequence, whichever is "
          "more, in at most half of the memory beside the weights")
      ->transform(kSize);
  command
      ->add_option("--gpu-memory-utilization,--memory-utilization", o->memory_utilization,
                   "share of the available memory that the plan may use")
      ->check(CLI::Range(0.05, 0.98))
      ->capture_default_str();
  command->add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o->prefix_caching,
                    "reuse the KV cache of equal prompt beginnings (on)");
}

// Flags of vLLM that change nothing here: scripts written for it keep working.
void AddAcceptedFlags(CLI::App* command) {
  static std::vector<std::string> ignored;
  static bool ignored_flag = false;
  for (const char* name : {"--dtype", "--distributed-executor-backend", "--attention-backend",
                           "--tokenizer-mode", "--response-role", "--chat-template-content-format",
                           "--uvicorn-log-level", "--swap-space", "--seed"}) {
    command->add_option(name, ignored, "")->group("");
  }
  for (const char* name :
       {"--trust-remote-code", "--enforce-eager", "--async-scheduling", "--enable-chunked-prefill",
        "--no-enable-chunked-prefill", "--enable-auto-tool-choice", "--disable-log-requests",
        "--disable-log-stats", "--disable-uvicorn-access-log", "--enable-prompt-tokens-details"}) {
    command->add_flag(name, ignored_flag, "")->group("");
  }
}

void AddServe(CLI::App& app, ServeOptions* o, int* status) {
  CLI::App* command =
      app.add_subcommand("serve", "serve a model through the OpenAI API, with a chat page");
  command->footer(R"(
Examples:
  nibble serve models/SmolLM2-135M-Instruct-NVFP4
  nibble serve org/name --host 0.0.0.0 --port 8888 --api-key "$KEY" --max-model-len 32k
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "Hello"}]}'

The port opens at once; GET /health answers 200 when the model is ready. SIGTERM finishes running answers first; while
the model loads it ends the program at once. Both exit with 0.)");
  AddModelOptions(command, &o->model);
  command->add_option("--served-model-name", o->served_model_names,
                      "names in the API; default: MODEL as typed");
  command->add_option("--host", o->host, "address to listen on; 0.0.0.0 for every interface")
      ->capture_default_str();
  command->add_option("--port", o->port, "port; 0 takes a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->add_option("--api-key", o->api_keys, "key that clients must send; several are allowed")
      ->allow_extra_args(false)
      ->envname("VLLM_API_KEY");
  command
      ->add_option("--allowed-origins", o->allowed_origins,
                   "origins of web pages that may call the API")
      ->allow_extra_args(false);
  command->add_option("--allowed-hosts", o->allowed_hosts, "further Host names that are accepted")
      ->allow_extra_args(false);
  command->add_option("--chat-template", o->chat_template,
                      "a Jinja file instead of the model's own");
  command->add_option(
      "--default-chat-template-kwargs", o->default_chat_template_kwargs,
      "JSON object of template variables, for example '{\"enable_thinking\": false}'");
  command
      ->add_option(
          "--tool-call-parser", o->tool_parser,
          "auto (by the chat template), none, or a name as in vLLM: qwen3_coder, openai, ...")
      ->capture_default_str();
  command
      ->add_option(
          "--reasoning-parser", o->reasoning_parser,
          "auto (by the chat template), none, or a name as in vLLM: qwen3, deepseek_r1, ...")
      ->capture_default_str();
  command
      ->add_option("--generation-config", o->generation_config,
                   "sampling defaults: auto (the model's) or vllm (neutral)")
      ->capture_default_str();
  command->add_option("--override-generation-config", o->override_generation_config,
                      "JSON object of single defaults, for example '{\"temperature\": 0.6}'");
  command
      ->add_option("--max-logprobs", o->max_logprobs,
                   "most log-probabilities per token that a request may ask for")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  command
      ->add_option("--request-timeout", o->request_timeout,
                   "seconds until a request ends with 504; 0: never")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--shutdown-timeout", o->shutdown_timeout,
                   "seconds that running answers get after SIGTERM")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  AddAcceptedFlags(command);
  command->callback([o, status] { *status = Serve(*o); });
}

void AddChat(CLI::App& app, ChatOptions* o, int* status) {
  CLI::App* command = app.add_subcommand("chat", "talk to a model in the terminal");
  command->footer(
      "\nExample:\n  nibble chat models/SmolLM2-135M-Instruct-NVFP4 --system \"Answer "
      "briefly.\"\n\n"
      "Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands.");
  AddModelOptions(command, &o->model);
  command->add_option("--system", o->system, "system message");
  command->add_option("--temperature", o->temperature,
                      "0: always the likeliest token; default: the model's");
  command->add_option("--max-tokens", o->max_tokens, "longest answer");
  command->callback([o, status] { *status = Chat(*o); });
}

void AddRun(CLI::App& app, RunOptions* o, int* status) {
  CLI::App* command = app.add_subcommand("run", "answer one prompt and exit");
  command->footer(
      "\nExamples:\n  nibble run MODEL \"Why is the sky blue?\"\n  cat notes.txt | nibble run "
      "MODEL - --max-tokens 200\n"
      "  nibble run MODEL --raw \"Once upon a time\"");
  AddModelOptions(command, &o->model);
  command->add_option("PROMPT", o->prompt, "the message, or - for standard input")->required();
  command->add_flag("--raw", o->raw, "continue the text as it is, without the chat template");
  command->add_option("--temperature", o->temperature,
                      "0: always the likeliest token; default: the model's");
  command->add_option("--max-tokens", o->max_tokens, "longest answer");
  command->add_option("--seed", o->seed, "the same seed gives the same answer");
  command->callback([o, status] { *status = RunOnce(*o); });
}

void AddBench(CLI::App& app, BenchModelOptions* model, BenchKernelsOptions* kernels, int* status) {
  CLI::App* command = app.add_subcommand("bench", "measure a model or the kernels");
  command->footer(
      "\nExamples:\n  nibble bench model MODEL --prompt 512 --decode 128 --batch 8\n  nibble bench "
      "MODEL --json\n"
      "  nibble bench model MODEL --mixed --prompt 8192 --batch 8\n"
      "  nibble bench kernels --threads 1,2 --kernel nvfp4xint8 --plot roofs.svg\n"
      "  nibble bench kernels --isa avx2\n"
      "  nibble bench kernels --device cuda --op linear --shape 4096x14336 --tokens 1,16\n\n"
      "Shares of the CPU's kernels compare with probes of the same run: memory read over the very "
      "weight, and\nmultiply-adds in registers. A figure with a goal says whether it is met.");
  command->require_subcommand(1);
  CLI::App* of_model =
      command->add_subcommand("model", "prefill and decode rates, with bytes and shares");
  AddModelOptions(of_model, &model->model);
  of_model->add_option("--prompt", model->prompts, "prompt tokens; a list measures each (512,8192)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  of_model->add_option("--decode", model->decode, "generated tokens")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  of_model->add_option("--batch", model->batches, "requests in parallel; a list measures each")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  of_model
      ->add_option("--context", model->contexts,
                   "tokens that count as computed before the prompt; a list measures each")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  of_model->add_flag(
      "--profile", model->profile,
      "what a decode step loses when an op is left out of it, and what the op reads");
  of_model->add_flag("--mixed", model->mixed,
                     "a prompt arrives beside --batch answers: the longest gap between two tokens "
                     "of an answer");
  of_model->add_flag("--check", model->check,
                     "first compare the first two layers and the head of dummy weights with the "
                     "reference's");
  of_model->add_option("--temperature", model->temperature, "0: greedy")->capture_default_str();
  of_model->add_option("--top-p", model->top_p, "of sampling")->capture_default_str();
  of_model->add_option("--repeat", model->repeat, "rounds; the median counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  of_model->add_flag("--json", model->json, "JSON instead of text: an object, or a list of them");
  of_model->callback([model, status] { *status = BenchModel(*model); });
  CLI::App* of_kernels =
      command->add_subcommand("kernels", "kernels beside the machine's read and multiply probes");
  of_kernels->add_option("--device", kernels->device, "cpu, cuda, cuda:N or auto")
      ->capture_default_str();
  of_kernels
      ->add_option("--op", kernels->ops, "linear, gate_up, linear_fp8, moe, attention; a list")
      ->delimiter(',')
      ->capture_default_str();
  of_kernels
      ->add_option("--shape", kernels->shapes,
                   "of a GPU: NxK of linear, 30b or next of moe, HqxHkxDh of attention; a list")
      ->delimiter(',');
  of_kernels->add_option("--context", kernels->contexts, "of a GPU's attention; a list")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  of_kernels
      ->add_option("--format", kernels->format,
                   "of a GPU's weights: nvfp4, mxfp4, int4, int8, fp8 (blocks of 128 x 128), bf16")
      ->capture_default_str();
  of_kernels->add_option("-t,--threads", kernels->threads, "threads; a list measures each (1,2)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  of_kernels->add_option(
      "--isa,--variant", kernels->variant,
      "of the CPU: amx, avx512, avx512bf16, avx2, neon, i8mm or generic; default: the fastest");
  of_kernels
      ->add_option(
          "--kernel", kernels->kernels,
          "of the CPU, weights x activations: nvfp4xint8, mxfp4xbf16, ...; a list; default: all")
      ->delimiter(',');
  of_kernels
      ->add_option("--tokens", kernels->tokens,
                   "tokens at once; a list; default: 1,4,16,128,512, of a GPU 1,8,16,64,512,2048")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16));
  of_kernels
      ->add_option("--stream-bytes", kernels->stream_bytes,
                   "size of the weight that up to 8 tokens read from memory; 0: twice the "
                   "last-level cache")
      ->transform(kSize)
      ->capture_default_str();
  of_kernels->add_option("--rows", kernels->batch_n, "N of the weight that more tokens meet")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();
  of_kernels->add_option("--columns", kernels->k, "K")
      ->check(CLI::Range(128, 1 << 20))
      ->capture_default_str();
  of_kernels->add_option("--plot", kernels->plot,
                         "write a picture of every kernel's roof: FILE.svg");
  of_kernels->add_flag("--json", kernels->json, "one JSON object instead of text");
  of_kernels->callback([kernels, status] { *status = BenchKernels(*kernels); });
}

void AddInspect(CLI::App& app, InspectOptions* o, int* status) {
  CLI::App* command =
      app.add_subcommand("inspect", "what a checkpoint holds and how fast it can decode");
  command->footer(R"(
Examples:
  nibble inspect MODEL
  nibble inspect MODEL --tensors | less
  nibble inspect configs/Qwen3-Next-80B-A3B --context 32k --json

A folder with a config.json and no weights is described as its config says.)");
  command->add_option("MODEL", o->model, "folder, .gguf file or org/name[@revision]")->required();
  AddLoadFormat(command, &o->load_format, &o->dummy_policy);
  command->add_option("--context", o->context, "tokens in the KV cache: 1024, 32k")
      ->transform(kSize)
      ->capture_default_str();
  command
      ->add_option("--kv-cache-dtype", o->kv_cache_dtype,
                   "auto (what the checkpoint says, else bf16), bf16 or fp8")
      ->capture_default_str();
  command->add_option("--quantization,-q", o->quantization,
                      "a cross-check: an error if the stored tensors are of another format");
  command->add_option("-t,--threads", o->threads, "threads for the memory probe");
  command->add_flag("--tensors", o->tensors, "list every tensor");
  command->add_flag("--json", o->json, "one JSON object instead of text");
  command->callback([o, status] { *status = Inspect(*o); });
}

void AddQuantize(CLI::App& app, QuantizeOptions* o, int* status) {
  CLI::App* command =
      app.add_subcommand("quantize", "make an NVFP4, MXFP4, INT4, FP8 or BF16 checkpoint");
  command->footer(R"(
Examples:
  nibble quantize org/name models/name-NVFP4
  nibble quantize model.gguf models/mine-NVFP4 --method max --layout compressed-tensors
  nibble quantize SRC DST --keep self_attn --keep layers.0. --perplexity
  nibble quantize SRC DST --calibrate --smooth --text notes.txt
  nibble quantize org/name-NVFP4 models/name-smaller --lm-head --also in_proj --perplexity
  nibble quantize --dummy configs/Qwen3-30B-A3B /dev/shm/Qwen3-30B-A3B

Without calibration data activations keep their precision: the result is W4A16. Embeddings, lm_head, routers and other
small or sensitive tensors stay as they are; the report says which and why. What is NVFP4 already is copied as it is, so
that the last example shrinks only what the checkpoint has left in BF16, and says what that saves and costs.)");
  command->add_option("SRC", o->source, "folder, .gguf file or org/name[@revision]")->required();
  command->add_option("DST", o->destination, "folder to make")->required();
  command->add_option("--format", o->format, "nvfp4, mxfp4, int4, fp8 or bf16")
      ->capture_default_str();
  command
      ->add_option("--method", o->method,
                   "mse (search each block's scale), four-over-six (two candidates) or max")
      ->capture_default_str();
  command->add_option("--layout", o->layout, "auto, modelopt or compressed-tensors")
      ->capture_default_str();
  command
      ->add_option("--modelopt-rounding", o->rounding,
                   "the last bit of tensor scales as ModelOpt computes it on cuda or cpu")
      ->capture_default_str();
  command
      ->add_option(
          "--policy", o->policy,
          "what is quantised: default, feed-forward (MLPs and experts alone) or everything")
      ->capture_default_str();
  command
      ->add_option("--keep", o->keep,
                   "name fragment of linears that stay as they are; several are allowed")
      ->allow_extra_args(false);
  command
      ->add_option("--also", o->also,
                   "name fragment of linears to quantise though the policy keeps them")
      ->allow_extra_args(false);
  command->add_flag("--lm-head", o->lm_head, "quantise lm_head too");
  command->add_flag("--calibrate", o->calibrate,
                    "measure activations over --text, those of experts too, and store their scales "
                    "(W4A4)");
  command->add_flag("--smooth", o->smooth,
                    "calibrate, and smooth activations (AWQ) where it lowers the output error");
  command->add_option("-t,--threads", o->threads, "threads");
  command->add_flag("--perplexity", o->perplexity,
                    "compare result and source over --text: perplexity, KL divergence, bytes");
  command->add_option("--text", o->text,
                      "the text for --calibrate and --perplexity; default: a short built-in one");
  command->add_flag("--force", o->force, "replace an existing destination");
  command->add_flag("--dummy", o->dummy,
                    "SRC is a folder with a config.json: write made-up weights in the formats that "
                    "it names, to measure loading");
  command->add_option("--dummy-policy", o->dummy_policy, "with --dummy: config or all-4bit")
      ->capture_default_str();
  command->add_option("--dummy-seed", o->dummy_seed, "with --dummy: of the weights")
      ->capture_default_str();
  command->callback([o, status] { *status = Quantize(*o); });
}

void AddEval(CLI::App& app, EvalOptions* o, int* status) {
  CLI::App* command =
      app.add_subcommand("eval", "perplexity of a model, and its distance to a reference");
  command->footer(R"(
Examples:
  nibble eval models/mine-NVFP4
  nibble eval models/mine-NVFP4 --reference model.gguf --text notes.txt
  nibble eval models/mine-NVFP4 --reference org/name --json

With --reference both models are in memory: KL divergence and the agreement of the likeliest token come from the whole
distribution at every token of the text. The reference always has a BF16 cache and, on GPUs, 16-bit activations: so a model
beside itself shows what --kv-cache-dtype costs.)");
  AddModelOptions(command, &o->model);
  command->add_option("--reference", o->reference,
                      "the model to compare with: the same one, quantised less");
  command->add_option("--text", o->text, "a text file; default: a short built-in one");
  command->add_option("--window", o->window, "tokens that are read together")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_flag("--json", o->json, "one JSON object instead of text");
  command->callback([o, status] { *status = Eval(*o); });
}

void AddSmallCommands(CLI::App& app, PullOptions* pull, bool* doctor_report, int* status) {
  CLI::App* command = app.add_subcommand("pull", "fetch a model into the Hugging Face cache");
  command->footer(
      "\nExample:\n  HF_TOKEN=... nibble pull org/name@main\n\nHF_HOME, HF_TOKEN, HF_ENDPOINT and "
      "HF_HUB_OFFLINE mean what they mean elsewhere; a broken download resumes.");
  command->add_option("MODEL", pull->model, "org/name[@revision]")->required();
  command->callback([pull, status] { *status = Pull(*pull); });
  CLI::App* doctor = app.add_subcommand("doctor", "what this machine is and which kernels it gets");
  doctor->add_flag("--report", *doctor_report,
                   "with a minute of figures of its kernels: to paste where machines are compared");
  doctor->callback([doctor_report, status] { *status = Doctor(*doctor_report); });
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// Names that could have been meant: options of the command in use, or commands.
std::vector<std::string> KnownNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
    if (!command->parsed()) continue;
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
    const std::vector<std::string> inner = KnownNames(*command);
    names.insert(names.end(), inner.begin(), inner.end());
  }
  return names;
}

int ReportUnknown(const CLI::App& app, const std::vector<std::string>& words) {
  const std::string word = words.empty() ? "" : words.front().substr(0, words.front().find('='));
  std::string nearest;
  size_t best = std::max<size_t>(3, word.size() / 3);
  for (const std::string& name : KnownNames(app)) {
    const size_t distance = EditDistance(word, name);
    if (distance < best) {
      best = distance;
      nearest = name;
    }
  }
  std::fprintf(stderr, "nibble: unknown argument %s%s\n", word.c_str(),
               nearest.empty() ? "; --help lists what there is"
                               : ("; did you mean " + nearest + "?").c_str());
  return 2;
}

// vLLM accepts --max_model_len for --max-model-len; `bench MODEL` is short for `bench model MODEL`.
std::vector<std::string> NormalizeArguments(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  for (std::string& argument : arguments) {
    if (!argument.starts_with("--")) continue;
    const size_t end = std::min(argument.find('='), argument.size());
    std::replace(argument.begin() + 2, argument.begin() + static_cast<std::ptrdiff_t>(end), '_',
                 '-');
  }
  if (arguments.size() >= 2 && arguments[0] == "bench" && arguments[1] != "model" &&
      arguments[1] != "kernels" && !arguments[1].starts_with("-")) {
    arguments.insert(arguments.begin() + 1, "model");
  }
  return arguments;
}

}  // namespace

int RunCommandLine(int argc, char** argv) {
  CLI::App app(kOverview, "nibble");
  app.require_subcommand(1);
  app.set_version_flag("--version", "nibble 0.1.0");
  int status = 0;
  ServeOptions serve;
  ChatOptions chat;
  RunOptions run;
  BenchModelOptions bench_model;
  BenchKernelsOptions bench_kernels;
  InspectOptions inspect;
  QuantizeOptions quantize;
  EvalOptions eval;
  PullOptions pull;
  AddServe(app, &serve, &status);
  AddChat(app, &chat, &status);
  AddRun(app, &run, &status);
  AddQuantize(app, &quantize, &status);
  AddEval(app, &eval, &status);
  AddInspect(app, &inspect, &status);
  AddBench(app, &bench_model, &bench_kernels, &status);
  bool doctor_report = false;
  AddSmallCommands(app, &pull, &doctor_report, &status);
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    command->fallthrough(false);

  std::vector<std::string> arguments = NormalizeArguments(argc, argv);
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(arguments);
  } catch (const CLI::ExtrasError&) {
    return ReportUnknown(app, app.remaining(true));
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  return status;
}

}  // namespace nibble::apps
