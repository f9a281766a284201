// /metrics: Prometheus text format 0.0.4 with vLLM's names, so that dashboards made for it work.
//
// The engine counts what it does (engine::EngineStats); HttpMetrics counts requests at the HTTP
// border; the writer turns both into text. Thread-safety: HttpMetrics may be used from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/stats.h"

namespace nibble::server {

using Labels = std::vector<std::pair<std::string, std::string>>;

// Writes metrics one after another; the HELP and TYPE lines come with the first sample of a name.
class MetricsWriter {
 public:
  explicit MetricsWriter(Labels common) : common_(std::move(common)) {}

  void Gauge(std::string_view name, std::string_view help, double value, const Labels& labels = {});
  void Counter(std::string_view name, std::string_view help, double value,
               const Labels& labels = {});
  void Histogram(std::string_view name, std::string_view help, const engine::Histogram& histogram,
                 const Labels& labels = {});
  const std::string& text() const { return text_; }

 private:
  void Header(std::string_view name, std::string_view help, std::string_view type);
  void Sample(std::string_view name, const Labels& labels, double value,
              std::string_view bound = {});

  const Labels common_;
  std::string text_;
  std::string last_name_;
};

class HttpMetrics {
 public:
  HttpMetrics();
  void Observe(std::string_view handler, std::string_view method, int status, double seconds,
               size_t response_bytes);
  void Write(MetricsWriter& out) const;

 private:
  struct PerHandler {
    engine::Histogram seconds;
    uint64_t bytes = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, std::string>, uint64_t> requests_;
  std::map<std::string, PerHandler> handlers_;
};

void WriteEngineMetrics(const engine::EngineStats& stats, const engine::MemoryPlan& plan,
                        MetricsWriter& out);
void WriteProcessMetrics(MetricsWriter& out);

}  // namespace nibble::server
