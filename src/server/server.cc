#include "server/server.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "server/http/http_server.h"
#include "server/service.h"

namespace nibble::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Prints what happened since the last line, when something did: the line that users paste into
// reports.
class ThroughputLog {
 public:
  void Print(const engine::EngineStats& now) {
    const auto time = steady_clock::now();
    const double seconds = std::chrono::duration<double>(time - last_time_).count();
    const int64_t prompt = now.prompt_tokens - last_.prompt_tokens;
    const int64_t generated = now.generation_tokens - last_.generation_tokens;
    if (prompt > 0 || generated > 0 || now.running > 0 || now.waiting > 0) {
      const double hit_rate = now.prefix_queries > 0
                                  ? 100.0 * static_cast<double>(now.prefix_hits) /
                                        static_cast<double>(now.prefix_queries)
                                  : 0.0;
      LogInfo(
          "prompt {:.1f} tokens/s, generation {:.1f} tokens/s, running {}, waiting {}, KV cache "
          "usage "
          "{:.1f} %, prefix cache hit rate {:.1f} %",
          static_cast<double>(prompt) / seconds, static_cast<double>(generated) / seconds,
          now.running, now.waiting, 100.0 * now.kv_usage, hit_rate);
    }
    last_ = now;
    last_time_ = time;
  }

 private:
  engine::EngineStats last_;
  steady_clock::time_point last_time_ = steady_clock::now();
};

}  // namespace

struct Server::Impl {
  explicit Impl(ServerOptions given)
      : options(std::move(given)),
        requests(options.request_threads),
        service(options, &requests, formatters) {}

  ~Impl() {
    // Workers first: afterwards nobody but the network threads touches a session.
    requests.Stop();
    service.answers().CloseAll();
    formatters->Stop();
    http.reset();
  }

  bool WaitForStop(int count, steady_clock::time_point until) {
    std::unique_lock lock(mutex);
    return stop_asked.wait_until(lock, until, [&] { return stops >= count; });
  }
  int Drain();

  const ServerOptions options;
  std::shared_ptr<engine::Engine> engine;  // dies last
  WorkPool requests;
  const std::shared_ptr<WorkPool> formatters = std::make_shared<WorkPool>(1);
  Service service;
  std::unique_ptr<HttpServer> http;

  std::mutex mutex;
  std::condition_variable stop_asked;
  int stops = 0;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  HttpServerOptions http;
  http.host = impl->options.host;
  http.port = impl->options.port;
  http.threads = impl->options.network_threads;
  http.limits = impl->options.limits;
  NIBBLE_ASSIGN(impl->http, HttpServer::Listen(http));
  impl->service.SetLoopback(impl->http->on_loopback());
  impl->http->Serve(&impl->service);
  if (!impl->http->on_loopback() && impl->options.api_keys.empty()) {
    LogWarning(
        "listening on {} without an API key: everybody who reaches this port can use the model; "
        "set one "
        "with --api-key",
        impl->options.host);
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

uint16_t Server::port() const { return impl_->http->port(); }

std::string Server::url() const {
  const std::string& host = impl_->options.host;
  const bool any = host.empty() || host == "0.0.0.0" || host == "::";
  const bool v6 = host.find(':') != std::string::npos;
  const std::string shown = any ? "127.0.0.1" : v6 ? "[" + host + "]" : host;
  return fmt::format("http://{}:{}", shown, port());
}

void Server::SetStage(std::string_view stage, double fraction) {
  impl_->service.SetStage(stage, fraction);
}

Status Server::SetReady(ServedModelOptions model) {
  impl_->engine = model.engine;
  NIBBLE_ASSIGN(auto served, MakeServedModel(std::move(model)));
  impl_->service.SetReady(std::move(served));
  return {};
}

void Server::Stop() {
  {
    std::lock_guard lock(impl_->mutex);
    ++impl_->stops;
  }
  impl_->stop_asked.notify_all();
}

int Server::Run() {
  impl_->http->OnSignal([this](int) { Stop(); });
  constexpr milliseconds kHealthPoll(250);
  ThroughputLog throughput;
  const milliseconds interval = impl_->options.stats_interval;
  const bool logs = interval.count() > 0;
  auto next_log = steady_clock::now() + interval;
  while (!impl_->WaitForStop(1, steady_clock::now() + kHealthPoll)) {
    const auto api = impl_->service.api();
    if (api == nullptr) continue;
    if (const Status health = api->model().engine->Health(); !health) {
      // Its requests have ended with the error. A supervisor starts anew what cannot go on.
      LogError("{}: ending", health.error().message());
      impl_->Drain();
      return 1;
    }
    if (logs && steady_clock::now() >= next_log) {
      throughput.Print(api->model().engine->stats());
      next_log += interval;
    }
  }
  return impl_->Drain();
}

// No new work; what runs may finish within the timeout; then it is told and cut.
int Server::Impl::Drain() {
  const auto deadline = steady_clock::now() + options.shutdown_timeout;
  LogInfo("shutting down: {} answers under way; a second signal stops at once",
          service.answers().size());
  service.SetDraining();
  http->Drain();
  while (!http->WaitUntilIdle(milliseconds(50)) && steady_clock::now() < deadline) {
    if (WaitForStop(2, steady_clock::now())) break;
  }
  if (http->connections() == 0) return 0;
  LogWarning("stopping with {} answers under way", service.answers().size());
  service.answers().FailAll(Error(Code::kUnavailable, "the server is shutting down"));
  http->WaitUntilIdle(milliseconds(500));
  return 1;
}

}  // namespace nibble::server
