// nibble quantize: any checkpoint to NVFP4 or BF16, with a report and, on request, perplexity
// before and after.
#include "quantize/quantizer.h"

#include <fmt/format.h>

#include "apps/load.h"
#include "apps/sample_text.h"
#include "apps/signals.h"
#include "base/file.h"
#include "eval/perplexity.h"
#include "formats/hub.h"

namespace nibble::apps {
namespace {

Result<quantize::QuantizeOptions> ToQuantizeOptions(const QuantizeOptions& options,
                                                    ThreadPool* pool) {
  quantize::QuantizeOptions out;
  if (options.format == "bf16") {
    out.format = quantize::Format::kBf16;
  } else if (options.format != "nvfp4") {
    return Fail(Code::kInvalidArgument, "--format {}: expected nvfp4 or bf16", options.format);
  }
  if (options.method == "max") {
    out.method = quantize::Method::kMax;
  } else if (options.method != "mse") {
    return Fail(Code::kInvalidArgument, "--method {}: expected max or mse", options.method);
  }
  if (options.layout == "compressed-tensors") {
    out.layout = quantize::Layout::kCompressedTensors;
  } else if (options.layout != "modelopt") {
    return Fail(Code::kInvalidArgument, "--layout {}: expected modelopt or compressed-tensors",
                options.layout);
  }
  out.policy.lm_head = options.lm_head;
  out.policy.keep = options.keep;
  out.pool = pool;
  out.replace = options.force;
  return out;
}

Result<eval::Perplexity> PerplexityOf(const std::string& model, int threads,
                                      const std::string& text) {
  ModelOptions options{
      .model = model, .threads = threads, .activations = "bf16", .max_num_seqs = 1};
  options.max_model_len = 512;
  NIBBLE_ASSIGN(const LoadedModel loaded, LoadEngine(options));
  return eval::MeasurePerplexity(*loaded.engine, text);
}

Status ReportPerplexity(const QuantizeOptions& options, const std::string& source) {
  std::string text(kSampleText);
  if (!options.text.empty()) {
    NIBBLE_ASSIGN(text, ReadFile(options.text, size_t{64} << 20));
  }
  NIBBLE_ASSIGN(const eval::Perplexity before, PerplexityOf(source, options.threads, text));
  NIBBLE_ASSIGN(const eval::Perplexity after,
                PerplexityOf(options.destination, options.threads, text));
  fmt::print("perplexity over {} tokens: {:.3f} before, {:.3f} after ({:+.2f} %)\n",
             before.scored_tokens, before.value, after.value,
             100 * (after.value / before.value - 1));
  return {};
}

// SIGINT and SIGTERM leave no half-made folder behind.
Result<quantize::QuantizeReport> QuantizeUnlessStopped(const formats::Checkpoint& checkpoint,
                                                       const std::string& destination,
                                                       quantize::QuantizeOptions job) {
  const SignalFlag stop = SignalFlag::Stops();
  job.cancelled = [&stop] { return stop.raised(); };
  return quantize::QuantizeCheckpoint(checkpoint, destination, job);
}

Status RunQuantize(const QuantizeOptions& options) {
  ThreadPool pool(ThreadCount(options.threads));
  NIBBLE_ASSIGN(const quantize::QuantizeOptions job, ToQuantizeOptions(options, &pool));
  NIBBLE_ASSIGN(const std::string source, formats::ResolveModel(options.source));
  NIBBLE_ASSIGN(const auto checkpoint, formats::OpenCheckpoint(source));
  NIBBLE_ASSIGN(const quantize::QuantizeReport report,
                QuantizeUnlessStopped(*checkpoint, options.destination, job));
  fmt::print("{}", report.ToString());
  return options.perplexity ? ReportPerplexity(options, source) : Status();
}

}  // namespace

int Quantize(const QuantizeOptions& options) {
  const Status status = RunQuantize(options);
  return status ? 0 : Report(status.error());
}

}  // namespace nibble::apps
