// The HTTP/1.1 listener: a few network threads, each with its own event loop; a connection belongs
// to one of them for life. Asio stays behind this header.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "server/http/http_service.h"
#include "server/http/limits.h"

namespace nibble::server {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  int threads = 2;
  HttpLimits limits;
};

class HttpServer {
 public:
  // The port is open when this returns; connections wait. Errors: kUnavailable for a used port,
  // kInvalidArgument for a host that is no address of this machine.
  static Result<std::unique_ptr<HttpServer>> Listen(const HttpServerOptions& options);
  // Starts to answer. `service` outlives the server. Once.
  void Serve(HttpService* service);
  ~HttpServer();  // closes every connection

  uint16_t port() const;
  bool on_loopback() const;  // reachable from this machine only
  int connections() const;

  // From now on calls back on a network thread for every SIGTERM and SIGINT. Once.
  void OnSignal(std::function<void(int signal)> callback);

  // Stops accepting, closes idle connections; the others close after their answer.
  void Drain();
  // Waits until no connection is left, or the time is over.
  bool WaitUntilIdle(std::chrono::milliseconds timeout);

  struct Impl;

 private:
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server
