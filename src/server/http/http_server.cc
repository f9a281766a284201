#include "server/http/http_server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log.h"
#include "server/http/session.h"

namespace nibble::server {
namespace {

namespace net = boost::asio;
using boost::system::error_code;
using net::ip::tcp;

constexpr auto kAwait = net::as_tuple(net::use_awaitable);

// One event loop and its thread. `sessions` belongs to the loop's thread.
struct Loop {
  net::io_context io{1};
  net::executor_work_guard<net::io_context::executor_type> work = net::make_work_guard(io);
  std::vector<std::weak_ptr<Session>> sessions;
  std::thread thread;
};

void RunLoop(Loop& loop) {
  while (true) {
    try {
      loop.io.run();
      return;
    } catch (const std::exception& error) {
      LogError("network thread: {}", error.what());
    }
  }
}

Result<tcp::acceptor> OpenPort(net::io_context& io, const std::string& host, uint16_t port) {
  error_code error;
  const std::string name = host == "localhost" ? "127.0.0.1" : host.empty() ? "0.0.0.0" : host;
  auto address = net::ip::make_address(name, error);
  if (error) {
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(name, "", error);
    if (error || found.empty()) {
      return Fail(Code::kInvalidArgument,
                  "host \"{}\": neither an IP address nor a name that resolves to one", host);
    }
    address = found.begin()->endpoint().address();
  }
  tcp::acceptor acceptor(io);
  const tcp::endpoint endpoint(address, port);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(net::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(net::socket_base::max_listen_connections, error);
  if (error == net::error::address_in_use) {
    return Fail(
        Code::kUnavailable,
        "port {} on {} is in use: stop the program that listens there, or choose another port "
        "with --port",
        port, name);
  }
  if (error == net::error::access_denied) {
    return Fail(Code::kUnavailable,
                "port {} on {}: permission denied; ports below 1024 need root, choose another with "
                "--port",
                port, name);
  }
  if (error) {
    return Fail(Code::kInvalidArgument, "cannot listen on {} port {}: {}", name, port,
                error.message());
  }
  return acceptor;
}

}  // namespace

struct HttpServer::Impl {
  SessionContext context;
  std::vector<std::unique_ptr<Loop>> loops;
  std::optional<tcp::acceptor> acceptor;
  std::optional<net::signal_set> signals;
  std::function<void(int)> on_signal;
  uint16_t port = 0;
  bool loopback = false;

  net::awaitable<void> AcceptLoop();
  net::awaitable<void> TurnAway(tcp::socket socket);
  void Adopt(Loop& loop, tcp::socket socket);
  void WaitForSignal();
};

net::awaitable<void> HttpServer::Impl::AcceptLoop() {
  net::steady_timer pause(loops[0]->io);
  for (size_t next = 0;; next = (next + 1) % loops.size()) {
    Loop& loop = *loops[next];
    auto [error, socket] = co_await acceptor->async_accept(loop.io, kAwait);
    if (error == net::error::operation_aborted || !acceptor->is_open()) co_return;
    if (error) {
      // Mostly out of file descriptors: those that are open must end first.
      LogWarning("accept: {}", error.message());
      pause.expires_after(std::chrono::milliseconds(100));
      (void)co_await pause.async_wait(kAwait);
      continue;
    }
    if (context.connections() >= context.limits.max_connections) {
      net::co_spawn(loop.io, TurnAway(std::move(socket)), net::detached);
      continue;
    }
    net::post(loop.io, [this, &loop, socket = std::move(socket)]() mutable {
      Adopt(loop, std::move(socket));
    });
  }
}

net::awaitable<void> HttpServer::Impl::TurnAway(tcp::socket socket) {
  const HttpResponse response = context.service->ProtocolError(
      503, "the server has as many connections as it accepts; try again");
  std::string text = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n";
  text +=
      "Content-Type: application/json\r\nContent-Length: " + std::to_string(response.body.size());
  text += "\r\n\r\n" + response.body;
  error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(net::buffer(text), ignored);  // fits any send buffer
  socket.shutdown(tcp::socket::shutdown_send, ignored);
  net::steady_timer pause(socket.get_executor(), std::chrono::milliseconds(200));
  (void)co_await pause.async_wait(kAwait);
}

void HttpServer::Impl::Adopt(Loop& loop, tcp::socket socket) {
  std::erase_if(loop.sessions, [](const auto& session) { return session.expired(); });
  loop.sessions.push_back(StartSession(std::move(socket), &context));
}

void HttpServer::Impl::WaitForSignal() {
  signals->async_wait([this](error_code error, int signal) {
    if (error) return;
    if (on_signal) on_signal(signal);
    WaitForSignal();
  });
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpServerOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->context.limits = options.limits;
  impl->context.bodies.SetLimit(options.limits.all_bodies_bytes);
  for (int i = 0; i < std::max(1, options.threads); ++i) {
    impl->loops.push_back(std::make_unique<Loop>());
  }
  NIBBLE_ASSIGN(impl->acceptor, OpenPort(impl->loops[0]->io, options.host, options.port));
  impl->port = impl->acceptor->local_endpoint().port();
  impl->loopback = impl->acceptor->local_endpoint().address().is_loopback();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

void HttpServer::Serve(HttpService* service) {
  impl_->context.service = service;
  net::co_spawn(impl_->loops[0]->io, impl_->AcceptLoop(), net::detached);
  for (auto& loop : impl_->loops) {
    loop->thread = std::thread([&loop = *loop] { RunLoop(loop); });
  }
}

HttpServer::~HttpServer() {
  for (auto& loop : impl_->loops) loop->io.stop();
  for (auto& loop : impl_->loops) {
    if (loop->thread.joinable()) loop->thread.join();
  }
  // Coroutine frames, and with them the sessions, die with their event loop; sessions count
  // themselves in the context, which must go last.
  impl_->signals.reset();
  impl_->acceptor.reset();
  impl_->loops.clear();
}

uint16_t HttpServer::port() const { return impl_->port; }
bool HttpServer::on_loopback() const { return impl_->loopback; }
int HttpServer::connections() const { return impl_->context.connections(); }

void HttpServer::OnSignal(std::function<void(int)> callback) {
  impl_->on_signal = std::move(callback);
  impl_->signals.emplace(impl_->loops[0]->io, SIGTERM, SIGINT);
  net::post(impl_->loops[0]->io, [impl = impl_.get()] { impl->WaitForSignal(); });
}

void HttpServer::Drain() {
  impl_->context.draining = true;
  for (auto& loop : impl_->loops) {
    net::post(loop->io, [impl = impl_.get(), &loop = *loop] {
      if (&loop == impl->loops[0].get()) {
        error_code ignored;
        impl->acceptor->close(ignored);
      }
      for (const auto& weak : loop.sessions) {
        if (const auto session = weak.lock()) session->Drain();
      }
    });
  }
}

bool HttpServer::WaitUntilIdle(std::chrono::milliseconds timeout) {
  return impl_->context.WaitUntilIdle(timeout);
}

}  // namespace nibble::server
