// Routes: from method and path to an endpoint, with the checks that every request passes first.
//
// Order of the checks, all before a body is read: Host and Origin, path, method, key, content type,
// readiness. Thread-safety: all methods may be called from any thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "server/api/api.h"
#include "server/guard.h"
#include "server/http/http_service.h"
#include "server/metrics.h"
#include "server/server.h"
#include "server/work_pool.h"

namespace nibble::server {

class Service final : public HttpService {
 public:
  // pages of options must outlive the service. The pools run its work and are stopped before it
  // dies.
  Service(const ServerOptions& options, WorkPool* requests, std::shared_ptr<WorkPool> formatters);

  // HttpService
  bool Screen(Exchange& exchange) override;
  void Handle(std::shared_ptr<Exchange> exchange) override;
  HttpResponse ProtocolError(int status, std::string_view message) override;
  void Answered(const HttpRequest& request, int status, size_t bytes) override;

  void SetLoopback(bool loopback);  // before the first request
  void SetStage(std::string_view stage, double fraction);
  void SetReady(std::shared_ptr<const ServedModel> model);
  void SetDraining() { draining_ = true; }

  std::shared_ptr<const ModelApi> api() const;  // null until ready
  AnswerRegistry& answers() { return *answers_; }

 private:
  struct Route;
  static std::span<const Route> Routes();
  static const Route* FindRoute(std::string_view path);

  bool ScreenMethod(Exchange& exchange, const Route& route);
  void AnswerPreflight(Exchange& exchange, std::string_view methods);
  bool ServePage(Exchange& exchange);
  std::optional<Error> NotServing() const;

  void Health(Exchange& exchange);
  void Live(Exchange& exchange);
  void Version(Exchange& exchange);
  void Load(Exchange& exchange);
  void Metrics(Exchange& exchange);

  const ServerOptions& options_;
  WorkPool* const requests_;
  const std::shared_ptr<WorkPool> formatters_;
  std::unique_ptr<const Guard> guard_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<bool> draining_{false};
  const std::shared_ptr<AnswerRegistry> answers_ = std::make_shared<AnswerRegistry>();
  HttpMetrics http_metrics_;

  mutable std::mutex mutex_;
  std::string stage_ = "starting";
  double fraction_ = 0.0;
  std::shared_ptr<const ModelApi> api_;
};

}  // namespace nibble::server
