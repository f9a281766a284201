// nibble quantize: any checkpoint to a smaller one, with a report, calibration over a text and, on
// request, what it saves per token and costs in perplexity and KL divergence.
#include <fmt/format.h>

#include <chrono>
#include <optional>
#include <string_view>
#include <utility>

#include "apps/evaluation.h"
#include "apps/load.h"
#include "apps/signals.h"
#include "device/cpu_places.h"
#include "formats/hub.h"
#include "quantize/copy.h"
#include "quantize/quantizer.h"
#include "text/byte_tokenizer.h"

namespace nibble::apps {
namespace {

using quantize::Format;
using quantize::Layout;
using quantize::Method;
using quantize::Rounding;
using Preset = quantize::QuantizePolicy::Preset;

constexpr int64_t kWindow = 512;  // tokens that are read together

// The value of a flag among those that it may have.
template <typename T, size_t N>
Result<T> Choose(std::string_view flag, std::string_view value,
                 const std::pair<std::string_view, T> (&choices)[N]) {
  std::string allowed;
  for (const auto& [name, choice] : choices) {
    if (name == value) return choice;
    allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", name);
  }
  return Fail(Code::kInvalidArgument, "{} {}: expected one of {}", flag, value, allowed);
}

Result<quantize::QuantizeOptions> ToQuantizeOptions(const QuantizeOptions& options,
                                                    ThreadPool* pool) {
  quantize::QuantizeOptions out;
  NIBBLE_ASSIGN(out.format, Choose<Format>("--format", options.format,
                                           {{"nvfp4", Format::kNvfp4},
                                            {"mxfp4", Format::kMxfp4},
                                            {"int4", Format::kInt4},
                                            {"fp8", Format::kFp8},
                                            {"bf16", Format::kBf16}}));
  NIBBLE_ASSIGN(out.method, Choose<Method>("--method", options.method,
                                           {{"max", Method::kMax},
                                            {"mse", Method::kMse},
                                            {"four-over-six", Method::kFourOverSix}}));
  const bool compressed_only = out.format == Format::kInt4 || out.format == Format::kFp8;
  NIBBLE_ASSIGN(
      out.layout,
      Choose<Layout>("--layout", options.layout,
                     {{"auto", compressed_only ? Layout::kCompressedTensors : Layout::kModelOpt},
                      {"modelopt", Layout::kModelOpt},
                      {"compressed-tensors", Layout::kCompressedTensors}}));
  NIBBLE_ASSIGN(out.rounding,
                Choose<Rounding>("--modelopt-rounding", options.rounding,
                                 {{"cuda", Rounding::kCuda}, {"cpu", Rounding::kCpu}}));
  NIBBLE_ASSIGN(out.policy.preset, Choose<Preset>("--policy", options.policy,
                                                  {{"default", Preset::kDefault},
                                                   {"feed-forward", Preset::kFeedForward},
                                                   {"everything", Preset::kEverything}}));
  out.policy.lm_head = options.lm_head;
  out.policy.keep = options.keep;
  out.policy.quantise = options.also;
  out.smoothing = options.smooth;
  out.pool = pool;
  out.replace = options.force;
  if ((options.calibrate || options.smooth) && out.format != Format::kNvfp4) {
    return Fail(Code::kInvalidArgument, "--calibrate and --smooth go with --format nvfp4, not {}",
                options.format);
  }
  if (options.smooth && out.layout != Layout::kModelOpt) {
    return Fail(Code::kInvalidArgument,
                "--smooth goes with --layout modelopt: compressed-tensors cannot hold it");
  }
  return out;
}

ModelOptions ReadingOptions(const std::string& model, const QuantizeOptions& options) {
  return {.model = model, .threads = options.threads, .cpu_activations = "bf16"};
}

// Runs the source over the text. The model is gone afterwards.
Status Calibrate(const QuantizeOptions& options, const std::string& source, const std::string& text,
                 quantize::Calibration* calibration) {
  NIBBLE_ASSIGN(const LoadedModel loaded,
                LoadForReading(ReadingOptions(source, options), kWindow, calibration));
  Progress progress("calibrating", TokensIn(*loaded.engine, text), Progress::Unit::kItems);
  return eval::Read(*loaded.engine, text, {.window = kWindow, .progress = &progress})
      .map([](const eval::Reading&) {});
}

Status ReportQuality(const QuantizeOptions& options, const std::string& source,
                     const std::string& text) {
  NIBBLE_ASSIGN(const LoadedModel before, LoadForReading(ReadingOptions(source, options), kWindow));
  NIBBLE_ASSIGN(const LoadedModel after,
                LoadForReading(ReadingOptions(options.destination, options), kWindow));
  NIBBLE_ASSIGN(const eval::Comparison found,
                CompareModels(*after.engine, *before.engine, text, kWindow));
  fmt::print("{}", ComparisonTable(found, after.engine->model_info(), before.engine->model_info()));
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

// A checkpoint of made-up weights as files.
Status WriteDummy(const QuantizeOptions& options) {
  const std::unique_ptr<ThreadPool> pool = MakeThreadPool(options.threads);
  NIBBLE_ASSIGN(const std::string source, formats::ResolveModel(options.source));
  NIBBLE_ASSIGN(const auto checkpoint, OpenModel(source, {.load_format = "dummy",
                                                          .dummy_policy = options.dummy_policy,
                                                          .dummy_seed = options.dummy_seed}));
  const SignalFlag stop = SignalFlag::Stops();
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN(const int64_t bytes,
                quantize::CopyCheckpoint(*checkpoint, options.destination,
                                         {.pool = pool.get(),
                                          // So that the folder can be served.
                                          .tokenizer_json = text::ByteTokenizerJson(),
                                          .replace = options.force,
                                          .cancelled = [&stop] { return stop.raised(); }}));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{}: {} of made-up weights in {:.1f} s, {:.2f} GB/s\n", options.destination,
             FormatBytes(static_cast<double>(bytes)), seconds,
             static_cast<double>(bytes) / seconds / 1e9);
  return {};
}

Status RunQuantize(const QuantizeOptions& options) {
  if (options.dummy) return WriteDummy(options);
  const std::unique_ptr<ThreadPool> pool = MakeThreadPool(options.threads);
  NIBBLE_ASSIGN(quantize::QuantizeOptions job, ToQuantizeOptions(options, pool.get()));
  NIBBLE_ASSIGN(const std::string source, formats::ResolveModel(options.source));
  NIBBLE_ASSIGN(const std::string text, EvalText(options.text));
  quantize::Calibration calibration(options.smooth);
  if (options.calibrate || options.smooth) {
    NIBBLE_TRY(Calibrate(options, source, text, &calibration));
    job.calibration = &calibration;
  }
  NIBBLE_ASSIGN(const auto checkpoint, formats::OpenCheckpoint(source));
  NIBBLE_ASSIGN(const quantize::QuantizeReport report,
                QuantizeUnlessStopped(*checkpoint, options.destination, job));
  fmt::print("{}", report.ToString());
  return options.perplexity ? ReportQuality(options, source, text) : Status();
}

}  // namespace

int Quantize(const QuantizeOptions& options) {
  const Status status = RunQuantize(options);
  return status ? 0 : Report(status.error());
}

}  // namespace nibble::apps
