#include "server/metrics.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <iterator>

#include "server/api/answer_json.h"

namespace nibble::server {
namespace {

std::string EscapeLabel(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) {
    return fmt::format("{}.0", static_cast<int64_t>(value));
  }
  return fmt::format("{}", value);
}

}  // namespace

void MetricsWriter::Header(std::string_view name, std::string_view help, std::string_view type) {
  if (name == last_name_) return;
  last_name_ = name;
  fmt::format_to(std::back_inserter(text_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void MetricsWriter::Sample(std::string_view name, const Labels& labels, double value,
                           std::string_view bound) {
  std::string list;
  const auto add = [&](std::string_view key, std::string_view text) {
    AppendComma(list);
    fmt::format_to(std::back_inserter(list), "{}=\"{}\"", key, EscapeLabel(text));
  };
  for (const auto& [key, text] : common_) add(key, text);
  for (const auto& [key, text] : labels) add(key, text);
  if (!bound.empty()) add("le", bound);
  text_ += name;
  if (!list.empty()) text_ += "{" + list + "}";
  text_ += " " + Number(value) + "\n";
}

void MetricsWriter::Gauge(std::string_view name, std::string_view help, double value,
                          const Labels& labels) {
  Header(name, help, "gauge");
  Sample(name, labels, value);
}

// The name comes without _total, which the format adds.
void MetricsWriter::Counter(std::string_view name, std::string_view help, double value,
                            const Labels& labels) {
  const std::string full = std::string(name) + "_total";
  Header(full, help, "counter");
  Sample(full, labels, value);
}

void MetricsWriter::Histogram(std::string_view name, std::string_view help,
                              const engine::Histogram& histogram, const Labels& labels) {
  Header(name, help, "histogram");
  const std::string bucket = std::string(name) + "_bucket";
  uint64_t sum = 0;
  for (size_t i = 0; i < histogram.bounds().size(); ++i) {
    sum += histogram.counts()[i];
    Sample(bucket, labels, static_cast<double>(sum), Number(histogram.bounds()[i]));
  }
  Sample(bucket, labels, static_cast<double>(histogram.count()), "+Inf");
  Sample(std::string(name) + "_count", labels, static_cast<double>(histogram.count()));
  Sample(std::string(name) + "_sum", labels, histogram.sum());
}

HttpMetrics::HttpMetrics() = default;

void HttpMetrics::Observe(std::string_view handler, std::string_view method, int status,
                          double seconds, size_t response_bytes) {
  const std::string group = fmt::format("{}xx", status / 100);
  std::lock_guard lock(mutex_);
  ++requests_[{std::string(handler), std::string(method), group}];
  auto [it, added] = handlers_.try_emplace(std::string(handler));
  if (added) it->second.seconds = engine::Histogram(engine::FirstTokenBounds());
  it->second.seconds.Observe(seconds);
  it->second.bytes += response_bytes;
}

void HttpMetrics::Write(MetricsWriter& out) const {
  std::lock_guard lock(mutex_);
  for (const auto& [key, count] : requests_) {
    const auto& [handler, method, status] = key;
    out.Counter("http_requests", "Requests by handler, method and status group.",
                static_cast<double>(count),
                {{"handler", handler}, {"method", method}, {"status", status}});
  }
  for (const auto& [handler, data] : handlers_) {
    out.Histogram("http_request_duration_seconds", "From the last header to the last byte.",
                  data.seconds, {{"handler", handler}});
  }
  for (const auto& [handler, data] : handlers_) {
    out.Counter("http_response_size_bytes", "Bytes of answers, heads included.",
                static_cast<double>(data.bytes), {{"handler", handler}});
  }
}

void WriteEngineMetrics(const engine::EngineStats& stats, const engine::MemoryPlan& plan,
                        MetricsWriter& out) {
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  out.Gauge("vllm:num_requests_running", "Sequences in the running batch.", real(stats.running));
  out.Gauge("vllm:num_requests_waiting", "Sequences that wait to run.", real(stats.waiting));
  out.Gauge("vllm:kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", stats.kv_usage);
  out.Gauge("vllm:cache_config_info", "The KV cache, as labels.", 1.0,
            {{"num_gpu_blocks", std::to_string(stats.kv_pages)},
             {"kv_bytes", std::to_string(plan.kv_bytes)},
             {"kv_tokens", std::to_string(plan.kv_tokens)}});
  out.Counter("vllm:prompt_tokens", "Prompt tokens processed.", real(stats.prompt_tokens));
  out.Counter("vllm:prompt_tokens_cached", "Prompt tokens taken from the prefix cache.",
              real(stats.prompt_tokens_cached));
  out.Counter("vllm:generation_tokens", "Tokens generated.", real(stats.generation_tokens));
  out.Counter("vllm:num_preemptions", "Sequences that gave their pages back.",
              real(stats.preemptions));
  out.Counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.",
              real(stats.prefix_queries));
  out.Counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.",
              real(stats.prefix_hits));
  for (const auto reason : {engine::FinishReason::kStop, engine::FinishReason::kLength,
                            engine::FinishReason::kAbort, engine::FinishReason::kError}) {
    out.Counter("vllm:request_success", "Finished requests by reason.",
                real(stats.requests_finished[static_cast<int>(reason)]),
                {{"finished_reason", std::string(FinishReasonName(reason))}});
  }
  out.Histogram("vllm:time_to_first_token_seconds", "Arrival to first token.",
                stats.time_to_first_token_seconds);
  out.Histogram("vllm:inter_token_latency_seconds", "Between two tokens of a choice.",
                stats.inter_token_latency_seconds);
  out.Histogram("vllm:request_time_per_output_token_seconds",
                "Mean per token of a choice, without its first.",
                stats.request_time_per_output_token_seconds);
  out.Histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.",
                stats.e2e_request_latency_seconds);
  out.Histogram("vllm:request_queue_time_seconds", "Arrival to first step.",
                stats.request_queue_time_seconds);
  out.Histogram("vllm:request_inference_time_seconds", "First step to last token.",
                stats.request_inference_time_seconds);
  out.Histogram("vllm:request_prefill_time_seconds", "First step to first token.",
                stats.request_prefill_time_seconds);
  out.Histogram("vllm:request_decode_time_seconds", "First token to last token.",
                stats.request_decode_time_seconds);
  out.Histogram("vllm:request_prompt_tokens", "Prompt tokens per request.",
                stats.request_prompt_tokens);
  out.Histogram("vllm:request_generation_tokens", "Generated tokens per request.",
                stats.request_generation_tokens);
  out.Histogram("vllm:request_max_num_generation_tokens", "Longest choice of a request.",
                stats.request_max_num_generation_tokens);
  out.Histogram("vllm:request_params_max_tokens", "max_tokens asked for.",
                stats.request_params_max_tokens);
  out.Histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed, not cached.",
                stats.request_prefill_kv_computed_tokens);
  out.Histogram("vllm:iteration_tokens_total", "Tokens per step.", stats.iteration_tokens_total);
  out.Histogram("vllm:request_params_n", "n asked for.", stats.request_params_n);
}

void WriteProcessMetrics(MetricsWriter& out) {
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    long total = 0;
    if (std::fscanf(file, "%ld %ld", &total, &pages) != 2) pages = 0;
    std::fclose(file);
  }
  out.Gauge("process_resident_memory_bytes", "Resident memory.",
            static_cast<double>(pages) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  if (DIR* folder = opendir("/proc/self/fd")) {
    int count = -3;  // ".", ".." and the folder itself
    while (readdir(folder) != nullptr) ++count;
    closedir(folder);
    out.Gauge("process_open_fds", "Open file descriptors.", count);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  out.Counter("process_cpu_seconds", "CPU time, user and system.",
              seconds(usage.ru_utime) + seconds(usage.ru_stime));
  static const auto start = static_cast<double>(std::time(nullptr));
  out.Gauge("process_start_time_seconds", "Unix time of the first look at the metrics.", start);
}

}  // namespace nibble::server
