#include "apps/bench_check.h"

#include "apps/load.h"
#include "apps/prompt_tokens.h"

namespace nibble::apps {
namespace {

constexpr int64_t kLayers = 2;
// All but the last give logits. The reference takes its time.
constexpr int64_t kTokens = 5;

}  // namespace

Result<eval::LogitsDistance> CheckAgainstReference(const BenchModelOptions& options) {
  ModelOptions first = options.model;
  if (first.load_format != "dummy") {
    return Fail(Code::kInvalidArgument,
                "--check: computes the first layers of made-up weights; give --load-format dummy");
  }
  first.dummy_layers = kLayers;
  first.even_routing = true;
  first.max_model_len = 128;
  first.max_num_seqs = 1;
  first.kv_cache_memory_bytes = int64_t{64} << 20;
  first.activations = "16";  // prompts as answers
  if (first.cpu_activations == "auto") first.cpu_activations = "bf16";
  ModelOptions reference = first;
  reference.reference = true;
  NIBBLE_ASSIGN(const LoadedModel on_device, LoadEngine(first));
  NIBBLE_ASSIGN(const LoadedModel on_host, LoadEngine(reference));
  return eval::MeasureLogits(*on_device.engine, *on_host.engine,
                             PromptTokens(kTokens, on_device.engine->tokenizer().vocab_size(), 7));
}

}  // namespace nibble::apps
