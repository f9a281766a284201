// The HTTP server: the port opens at once, /health tells how far loading is, SetReady opens the
// API.
//
//   auto server = Server::Start(options);   // port open, /health 503
//   server->SetStage("loading weights", 0.4);
//   server->SetReady({.engine = engine, .names = {"org/model"}, ...});
//   return server->Run();                   // until SIGTERM: drains; a second signal forces
//
// Threads: a few for the network, a pool for requests (JSON, templates, tokenising), one that
// formats answers; none of them waits for another. Thread-safety: SetStage and SetReady may be
// called from any thread, Run from one.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "server/api/served_model.h"
#include "server/http/limits.h"

namespace nibble::server {

// A file of the web page, embedded in the binary.
struct Page {
  std::string path;          // "/", "/chat.js"
  std::string content_type;  // "text/html; charset=utf-8"
  std::span<const unsigned char> gzip;
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  std::string version = "0.1.0";
  std::vector<std::string> api_keys;
  std::vector<std::string> allowed_origins;
  std::vector<std::string> allowed_hosts;
  std::vector<Page> pages;

  std::chrono::milliseconds request_timeout{0};        // until the last token; 0: none
  std::chrono::milliseconds shutdown_timeout{30'000};  // for running answers after SIGTERM
  std::chrono::milliseconds stats_interval{10'000};    // the throughput line in the log; 0: none
  bool prompt_tokens_details = true;
  int network_threads = 2;
  int request_threads = 2;
  HttpLimits limits;
};

class Server {
 public:
  // Errors say which port or host is to blame and what to do.
  static Result<std::unique_ptr<Server>> Start(ServerOptions options);
  ~Server();  // stops at once

  uint16_t port() const;
  std::string url() const;  // "http://127.0.0.1:8000"

  // For /health while loading: "loading weights", 0.4.
  void SetStage(std::string_view stage, double fraction);
  // From now on requests are answered. Errors: a chat template or a config file that does not
  // parse.
  Status SetReady(ServedModelOptions model);

  // Blocks until SIGTERM or SIGINT, or Stop; then drains. 0 when every answer was complete, 1 when
  // some had to be cut.
  int Run();
  // Like the signal: once to drain, twice to force. Any thread.
  void Stop();

  struct Impl;

 private:
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server
