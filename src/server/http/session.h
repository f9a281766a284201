// One connection: reads requests one after another, hands each to the service, writes the answer.
//
// Rules that the code below keeps:
//  - every read and write has a time limit; every size has a limit;
//  - a request is checked before its body is read; a refused body is never buffered;
//  - while a request is being answered the read side is watched, so a client that leaves is noticed
//    at once, also when nothing is being written. End of stream may be a client that only closed
//    its sending half: it is asked, by an interim response (102) or, in a stream, by a comment
//    line. A client that is really gone answers with a reset;
//  - a write that timed out leaves the connection unusable: it is closed, never written to again.
// Thread-safety: everything but Wake and Drain runs on the connection's network thread.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "server/http/http_service.h"
#include "server/http/limits.h"

namespace nibble::server {

// Shared by all sessions of a server; outlives them. Thread-safe.
struct SessionContext {
  HttpService* service = nullptr;
  HttpLimits limits;
  ByteBudget bodies{0};
  std::atomic<bool> draining{false};

  void Opened() {
    std::lock_guard lock(mutex);
    ++open;
  }
  void Closed() {
    std::lock_guard lock(mutex);
    if (--open == 0) all_closed.notify_all();
  }
  int connections() const {
    std::lock_guard lock(mutex);
    return open;
  }
  bool WaitUntilIdle(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex);
    return all_closed.wait_for(lock, timeout, [this] { return open == 0; });
  }

  mutable std::mutex mutex;
  std::condition_variable all_closed;
  int open = 0;
};

class Session {
 public:
  virtual ~Session() = default;
  virtual void Drain() = 0;  // close if idle; else after the current answer. Any thread.
};

// Runs until the connection closes; counts itself in the context. Call on the socket's
// network thread. The session owns itself.
std::weak_ptr<Session> StartSession(boost::asio::ip::tcp::socket socket, SessionContext* context);

}  // namespace nibble::server
