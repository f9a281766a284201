// One HTTP request and its answer: the border between a network session and the API.
//
// The session (its network thread) fills in the request and takes output out; the API, on any
// thread, either responds once, or starts a stream, writes to it and finishes it. Nothing here
// blocks: output is queued, and a producer looks at `congested` and waits for the drained callback.
// When the client has gone the session says so, once, through the gone callback.
// Thread-safety: all methods of the answer side may be called from any thread; callbacks run on the
// network thread, without the lock held.
#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/limits.h"

namespace nibble::server {

struct HttpHeader {
  std::string name;  // of requests: lower case
  std::string value;
};

struct HttpRequest {
  std::string method;
  std::string path;   // as sent, without the query
  std::string query;  // without '?'
  std::vector<HttpHeader> headers;
  std::string peer;  // address, for the log
  std::chrono::steady_clock::time_point arrival;

  // The first header of that name (lower case), or an empty view.
  std::string_view Header(std::string_view name) const;
  size_t CountHeaders(std::string_view name) const;
};

struct HttpBody {
  std::string text;
  ByteLease lease;  // its share of HttpLimits::all_bodies_bytes
};

struct HttpResponse {
  int status = 200;
  std::string content_type;  // empty: no such header
  std::string body;
  std::vector<HttpHeader> headers;
};

class Exchange {
 public:
  // wake: tells the session that Take has something; called from any thread.
  Exchange(HttpRequest request, std::function<void()> wake);

  const HttpRequest& request() const { return request_; }

  // ---- Answer side
  HttpBody TakeBody() { return std::move(body_); }
  void AddHeader(std::string name, std::string value);  // sent with whatever answer follows

  // The whole answer. False, and nothing happens, when a stream has already been started.
  bool Respond(HttpResponse response);
  // The head of an answer whose body follows by Write; without effect when already started.
  void StartStream(HttpResponse head);
  // Lets the session start the stream by itself when it has been silent for a heartbeat interval.
  void AllowEarlyStart(HttpResponse head);
  void Write(std::string_view bytes);
  void Finish();

  // More bytes wait for the client than one should add to.
  bool congested() const;
  bool gone() const;
  // on_gone: the client left before the answer was complete (called at once if it already has).
  // on_drained: everything written so far has been sent. Both are dropped when the exchange ends.
  void SetCallbacks(std::function<void()> on_gone, std::function<void()> on_drained);

  // ---- Session side
  struct Output {
    std::optional<HttpResponse> head;  // to send first
    bool stream = false;               // the body comes in pieces
    std::string bytes;
    bool finished = false;
  };
  void SetBody(HttpBody body) { body_ = std::move(body); }
  Output Take();
  void Sent();             // all that Take gave has been written
  bool StartEarly();       // see AllowEarlyStart; true when it did
  bool streaming() const;  // the head of a stream has been started
  void MarkGone();
  void End();  // no callback runs afterwards

  static constexpr size_t kHighWater = 64 << 10;

 private:
  const HttpRequest request_;
  const std::function<void()> wake_;
  HttpBody body_;

  mutable std::mutex mutex_;
  std::vector<HttpHeader> common_headers_;
  std::optional<HttpResponse> head_;
  std::optional<HttpResponse> early_head_;
  std::string bytes_;
  size_t in_flight_ = 0;
  bool started_ = false;
  bool stream_ = false;
  bool finished_ = false;
  bool gone_ = false;
  std::function<void()> on_gone_;
  std::function<void()> on_drained_;
};

}  // namespace nibble::server
