// g++ 12 compiles two things about co_await wrongly, and this file avoids them: an operand of && or
// || is awaited whatever the other side says, and class-type temporaries of its expression are
// destroyed twice.
#include "server/http/session.h"

#include <fmt/core.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <ctime>
#include <utility>

#include "base/log.h"

namespace nibble::server {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;
using Parser = http::request_parser<http::string_body>;

constexpr auto kAwait = net::as_tuple(net::use_awaitable);
constexpr size_t kSlice = 256 << 10;  // one write, and what the write timeout is measured by
constexpr std::string_view kHeartbeat = ": keep-alive\n\n";

std::string_view ReasonPhrase(int status) {
  return status == 499 ? std::string_view("Client Closed Request")
                       : std::string_view(http::obsolete_reason(static_cast<http::status>(status)));
}

std::string HttpDate() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[40];
  const size_t size = std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return std::string(text, size);
}

std::string FormatHead(const HttpResponse& response, bool chunked, bool has_length, size_t length,
                       bool keep_alive, bool http10) {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: nibble\r\nDate: {}\r\n",
                                 response.status, ReasonPhrase(response.status), HttpDate());
  if (!response.content_type.empty()) head += "Content-Type: " + response.content_type + "\r\n";
  for (const HttpHeader& header : response.headers) {
    head += header.name + ": " + header.value + "\r\n";
  }
  if (chunked) head += "Transfer-Encoding: chunked\r\n";
  if (has_length) head += fmt::format("Content-Length: {}\r\n", length);
  if (!keep_alive) {
    head += "Connection: close\r\n";
  } else if (http10) {
    head += "Connection: keep-alive\r\n";
  }
  return head + "\r\n";
}

struct Refusal {
  int status;
  std::string message;
};

Refusal ExplainParseError(error_code error, const HttpLimits& limits) {
  if (error == http::error::header_limit) {
    return {431, fmt::format("the request's header is larger than {} bytes", limits.header_bytes)};
  }
  if (error == http::error::body_limit) {
    return {413, fmt::format("the request's body is larger than {} bytes", limits.body_bytes)};
  }
  if (error == http::error::partial_message || error == net::error::eof) {
    return {400, "the request ends before it is complete"};
  }
  return {400, fmt::format("malformed HTTP request: {}", error.message())};
}

bool IsHttpError(error_code error) {
  return error.category() == make_error_code(http::error::bad_method).category();
}

class SessionImpl final : public Session, public std::enable_shared_from_this<SessionImpl> {
 public:
  SessionImpl(net::ip::tcp::socket socket, SessionContext* context)
      : socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        wake_(socket_.get_executor()),
        context_(*context),
        limits_(context->limits) {
    context_.Opened();
  }
  ~SessionImpl() override {
    if (exchange_) exchange_->End();  // it may hold what holds it
    context_.Closed();
  }

  void Start() {
    ConfigureSocket();
    net::co_spawn(
        socket_.get_executor(), [self = shared_from_this()] { return self->Run(); },
        [self = shared_from_this()](std::exception_ptr error) {
          if (!error) return;
          try {
            std::rethrow_exception(error);
          } catch (const std::exception& e) {
            LogError("connection from {}: {}", self->peer_, e.what());
          }
        });
  }

  void Drain() override {
    net::post(socket_.get_executor(), [self = shared_from_this()] {
      if (self->idle_) self->Close();
    });
  }

 private:
  void ConfigureSocket();
  net::awaitable<void> Run();

  // ---- Reading
  enum class ReadResult { kRequest, kAnswered, kClose };
  net::awaitable<bool> WaitForRequest();
  net::awaitable<ReadResult> ReadRequest();
  net::awaitable<bool> ReadBody(Parser& parser, HttpBody& body);
  net::awaitable<bool> Refuse(int status, std::string_view message);
  net::awaitable<void> RefuseParseError(error_code error);
  HttpRequest TakeHead(const Parser& parser) const;
  std::shared_ptr<Exchange> MakeExchange(HttpRequest request);
  std::optional<Refusal> CheckHead(const Parser& parser) const;

  // ---- Answering
  net::awaitable<bool> Answer();
  net::awaitable<bool> SendOutput(const Exchange::Output& output);
  net::awaitable<bool> Send(std::string_view bytes);
  net::awaitable<bool> SendBody(std::string_view bytes);
  net::awaitable<void> WaitForOutput();
  net::awaitable<bool> Probe();
  net::awaitable<void> Linger();

  // ---- Watching the read side while answering
  void StartWatch();
  void OnReadable();
  void WatchForReset();
  net::awaitable<void> StopWatch();

  void ArmTimer(milliseconds timeout);
  void DisarmTimer();
  void Wake();  // any thread
  void Close();

  net::ip::tcp::socket socket_;
  net::steady_timer timer_;  // the limit of the running read or write
  net::steady_timer wake_;   // what Answer sleeps on
  SessionContext& context_;
  const HttpLimits& limits_;
  boost::beast::flat_buffer buffer_;
  std::string peer_;
  std::string refusal_;  // being written

  uint64_t timer_epoch_ = 0;
  bool timed_out_ = false;
  std::atomic<bool> wake_posted_{false};
  bool idle_ = false;

  // The request being answered.
  std::shared_ptr<Exchange> exchange_;
  bool keep_alive_ = false;
  bool http10_ = false;
  bool head_request_ = false;
  bool head_sent_ = false;
  bool chunked_ = false;
  int status_ = 0;
  size_t bytes_sent_ = 0;

  bool watching_ = false;
  bool stop_watch_ = false;
  bool peer_closed_sending_ = false;
  bool peer_gone_ = false;
  bool unread_input_ = false;  // more may come that nobody will read
};

void SessionImpl::ConfigureSocket() {
  error_code ignored;
  socket_.set_option(net::ip::tcp::no_delay(true), ignored);
  const auto user_timeout = static_cast<unsigned>(limits_.write_timeout.count());
  setsockopt(socket_.native_handle(), IPPROTO_TCP, 18 /* TCP_USER_TIMEOUT */, &user_timeout,
             sizeof user_timeout);
  const auto endpoint = socket_.remote_endpoint(ignored);
  if (!ignored) peer_ = endpoint.address().to_string();
}

net::awaitable<void> SessionImpl::Run() {
  while (true) {
    const bool more = co_await WaitForRequest();
    if (!more) break;
    const ReadResult result = co_await ReadRequest();
    if (result == ReadResult::kClose) break;
    if (result == ReadResult::kRequest) context_.service->Handle(exchange_);
    const bool open = co_await Answer();
    exchange_.reset();
    if (!open) break;
  }
  co_await Linger();
  Close();
}

// ---- Reading ----

// False when the client has nothing more to say.
net::awaitable<bool> SessionImpl::WaitForRequest() {
  if (buffer_.size() > 0) co_return true;  // pipelined
  if (context_.draining || peer_closed_sending_) co_return false;
  idle_ = true;
  ArmTimer(limits_.keep_alive_timeout);
  auto [error] = co_await socket_.async_wait(net::socket_base::wait_read, kAwait);
  DisarmTimer();
  idle_ = false;
  co_return !error;
}

net::awaitable<SessionImpl::ReadResult> SessionImpl::ReadRequest() {
  head_request_ = false;
  Parser parser;
  parser.header_limit(static_cast<std::uint32_t>(limits_.header_bytes));
  parser.body_limit(limits_.body_bytes);

  ArmTimer(limits_.header_timeout);
  auto [error, read] = co_await http::async_read_header(socket_, buffer_, parser, kAwait);
  DisarmTimer();
  if (error == http::error::end_of_stream) co_return ReadResult::kClose;
  if (timed_out_) {
    co_await Refuse(408, "the request's header did not arrive in time");
    co_return ReadResult::kClose;
  }
  if (error) {
    co_await RefuseParseError(error);
    co_return ReadResult::kClose;
  }

  const std::optional<Refusal> refusal = CheckHead(parser);
  if (refusal) {
    co_await Refuse(refusal->status, refusal->message);
    co_return ReadResult::kClose;
  }
  http10_ = parser.get().version() == 10;
  keep_alive_ = parser.keep_alive();
  exchange_ = MakeExchange(TakeHead(parser));
  head_request_ = exchange_->request().method == "HEAD";
  if (!context_.service->Screen(*exchange_)) {
    // Answered from the headers alone. What is left of the body is not read, so the connection
    // ends.
    if (!parser.is_done()) {
      keep_alive_ = false;
      unread_input_ = true;
    }
    co_return ReadResult::kAnswered;
  }
  HttpBody body{{}, ByteLease(&context_.bodies)};
  if (!co_await ReadBody(parser, body)) {
    exchange_.reset();
    co_return ReadResult::kClose;
  }
  exchange_->SetBody(std::move(body));
  co_return ReadResult::kRequest;
}

std::optional<Refusal> SessionImpl::CheckHead(const Parser& parser) const {
  const auto& head = parser.get();
  const auto hosts = head.count(http::field::host);
  if (hosts > 1 || (hosts == 0 && head.version() >= 11)) {
    return Refusal{400, "a request needs exactly one Host header"};
  }
  if (head.count(http::field::transfer_encoding) > 0 && !parser.chunked()) {
    return Refusal{400, "Transfer-Encoding: only chunked is supported"};
  }
  const auto length = parser.content_length();
  if (length && *length > limits_.body_bytes) {
    return Refusal{413, fmt::format("the request's body has {} bytes; at most {} are allowed",
                                    *length, limits_.body_bytes)};
  }
  const auto expect = head[http::field::expect];
  if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
    return Refusal{417, "Expect: only 100-continue is supported"};
  }
  return std::nullopt;
}

HttpRequest SessionImpl::TakeHead(const Parser& parser) const {
  const auto& head = parser.get();
  HttpRequest request;
  request.method = std::string(head.method_string());
  std::string_view target(head.target().data(), head.target().size());
  // absolute-form, as proxies send it: the path begins at the third slash
  if (!target.starts_with('/')) {
    const size_t scheme = target.find("://");
    if (scheme != std::string_view::npos) {
      const size_t slash = target.find('/', scheme + 3);
      target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
    }
  }
  const size_t question = target.find('?');
  request.path = std::string(target.substr(0, question));
  if (question != std::string_view::npos) request.query = std::string(target.substr(question + 1));
  for (const auto& field : head) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    request.headers.push_back({std::move(name), std::string(field.value())});
  }
  request.peer = peer_;
  request.arrival = std::chrono::steady_clock::now();
  return request;
}

net::awaitable<bool> SessionImpl::ReadBody(Parser& parser, HttpBody& body) {
  const size_t announced = parser.content_length().value_or(0);
  if (!body.lease.Grow(announced)) {
    co_await Refuse(503, "too many request bodies are in memory; try again");
    co_return false;
  }
  if (parser.get().count(http::field::expect) > 0 && !parser.is_done()) {
    if (!co_await Send("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  const auto deadline = std::chrono::steady_clock::now() + limits_.body_timeout;
  while (!parser.is_done()) {
    const auto left =
        std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    ArmTimer(std::max(milliseconds(1), std::min(limits_.body_idle_timeout, left)));
    auto [error, read] = co_await http::async_read_some(socket_, buffer_, parser, kAwait);
    DisarmTimer();
    if (timed_out_) {
      co_await Refuse(408, "the request's body did not arrive in time");
      co_return false;
    }
    if (error) {
      co_await RefuseParseError(error);
      co_return false;
    }
    if (!body.lease.Grow(parser.get().body().size())) {
      co_await Refuse(503, "too many request bodies are in memory; try again");
      co_return false;
    }
  }
  body.text = std::move(parser.get().body());
  co_return true;
}

// An answer outside any exchange; the connection ends after it. The text outlives the write as a
// member.
net::awaitable<bool> SessionImpl::Refuse(int status, std::string_view message) {
  unread_input_ = true;
  const HttpResponse response = context_.service->ProtocolError(status, message);
  refusal_ = FormatHead(response, false, true, response.body.size(), false, false);
  if (!head_request_) refusal_ += response.body;
  context_.service->Answered(exchange_ ? exchange_->request() : HttpRequest{}, status,
                             refusal_.size());
  return Send(refusal_);
}

net::awaitable<void> SessionImpl::RefuseParseError(error_code error) {
  if (!IsHttpError(error)) co_return;  // the connection broke: nobody is there to be told
  const Refusal refusal = ExplainParseError(error, limits_);
  co_await Refuse(refusal.status, refusal.message);
}

std::shared_ptr<Exchange> SessionImpl::MakeExchange(HttpRequest request) {
  head_sent_ = false;
  chunked_ = false;
  status_ = 0;
  bytes_sent_ = 0;
  return std::make_shared<Exchange>(std::move(request), [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->Wake();
  });
}

// ---- Answering ----

// Sends what the exchange yields until it is finished or the client has gone. True when the
// connection can carry another request.
net::awaitable<bool> SessionImpl::Answer() {
  StartWatch();
  bool intact = true;
  bool probed = false;
  while (true) {
    if (peer_closed_sending_ && !probed && !peer_gone_) {
      probed = true;
      peer_gone_ = !co_await Probe();
      WatchForReset();
    }
    if (peer_gone_) break;
    const Exchange::Output output = exchange_->Take();
    if (!co_await SendOutput(output)) {
      peer_gone_ = true;
      break;
    }
    exchange_->Sent();
    if (output.finished) break;
    if (!output.head && output.bytes.empty()) co_await WaitForOutput();
  }
  if (peer_gone_) {
    intact = false;
    status_ = 499;
    exchange_->MarkGone();
  }
  exchange_->End();
  co_await StopWatch();
  context_.service->Answered(exchange_->request(), status_, bytes_sent_);
  co_return intact&& keep_alive_ && !context_.draining;
}

net::awaitable<bool> SessionImpl::SendOutput(const Exchange::Output& output) {
  if (output.head) {
    const bool bodiless = output.head->status == 204 || output.head->status == 304;
    chunked_ = output.stream && !http10_;
    if ((output.stream && http10_) || context_.draining) keep_alive_ = false;
    status_ = output.head->status;
    std::string text = FormatHead(*output.head, chunked_, !output.stream && !bodiless,
                                  output.bytes.size(), keep_alive_, http10_);
    head_sent_ = true;
    // One write for head and body where they are small: one packet, one wake-up of the client.
    if (!output.stream && output.bytes.size() <= kSlice) {
      if (!head_request_) text += output.bytes;
      co_return co_await Send(text);
    }
    if (!co_await Send(text)) co_return false;
  }
  if (head_request_) co_return true;
  if (!output.bytes.empty()) {
    const bool sent = co_await SendBody(output.bytes);
    if (!sent) co_return false;
  }
  if (output.finished && output.stream && chunked_) {
    co_return co_await Send("0\r\n\r\n");
  }
  co_return true;
}

net::awaitable<bool> SessionImpl::SendBody(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size(); at += kSlice) {
    const std::string_view slice = bytes.substr(at, kSlice);
    if (!chunked_) {
      if (!co_await Send(slice)) co_return false;
      continue;
    }
    std::string chunk = fmt::format("{:x}\r\n", slice.size());
    chunk.append(slice).append("\r\n");
    if (!co_await Send(chunk)) co_return false;
  }
  co_return true;
}

// `bytes` must stay valid until the write is done: callers keep it in their frame.
net::awaitable<bool> SessionImpl::Send(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size(); at += kSlice) {
    const std::string_view slice = bytes.substr(at, kSlice);
    ArmTimer(limits_.write_timeout);
    auto [error, written] =
        co_await net::async_write(socket_, net::buffer(slice.data(), slice.size()), kAwait);
    DisarmTimer();
    bytes_sent_ += written;
    if (error) co_return false;
  }
  co_return true;
}

// Sleeps until the exchange or the watch has something, or sends a sign of life.
net::awaitable<void> SessionImpl::WaitForOutput() {
  if (peer_gone_) co_return;
  wake_.expires_after(limits_.heartbeat);
  auto [error] = co_await wake_.async_wait(kAwait);
  const bool silent = !error;
  if (!silent || head_request_) co_return;
  if (exchange_->streaming() ? head_sent_ : exchange_->StartEarly()) exchange_->Write(kHeartbeat);
}

// Something harmless for a client that may only have closed its sending half.
net::awaitable<bool> SessionImpl::Probe() {
  if (exchange_->streaming() && head_sent_) co_return co_await SendBody(kHeartbeat);
  if (head_sent_) co_return true;  // more bytes will follow anyway
  if (http10_) co_return false;    // knows no interim responses
  co_return co_await Send("HTTP/1.1 102 Processing\r\n\r\n");
}

// Closing with unread input would reset the connection, and the client might lose the answer: say
// that nothing more follows, then read on for a moment.
net::awaitable<void> SessionImpl::Linger() {
  error_code error;
  socket_.shutdown(net::ip::tcp::socket::shutdown_send, error);
  if (error || !unread_input_) co_return;
  ArmTimer(limits_.linger_timeout);
  std::array<char, 4096> scrap;
  while (!error && !timed_out_) {
    auto [read_error, read] = co_await socket_.async_read_some(net::buffer(scrap), kAwait);
    error = read_error;
  }
  DisarmTimer();
}

// ---- Watching ----

void SessionImpl::StartWatch() {
  stop_watch_ = false;
  if (peer_closed_sending_) return;
  watching_ = true;
  socket_.async_wait(net::socket_base::wait_read, [self = shared_from_this()](error_code error) {
    self->watching_ = false;
    if (!error && !self->stop_watch_) self->OnReadable();
    self->wake_.cancel();
  });
}

// Bytes are the beginning of a pipelined request; the end of the stream may be the end of the
// client.
void SessionImpl::OnReadable() {
  constexpr size_t kStep = 16 << 10;
  const bool full = buffer_.size() >= limits_.pipelined_bytes;
  if (full) {
    // Reading must go on, or the end would not be seen: the excess is dropped and so is the
    // connection.
    keep_alive_ = false;
    unread_input_ = true;
    buffer_.clear();
  }
  error_code error;
  socket_.non_blocking(true, error);
  const size_t read = socket_.read_some(buffer_.prepare(kStep), error);
  if (!error) {
    if (keep_alive_) buffer_.commit(read);
    StartWatch();
  } else if (error == net::error::would_block) {
    StartWatch();
  } else if (error == net::error::eof) {
    peer_closed_sending_ = true;
  } else {
    peer_gone_ = true;
  }
}

void SessionImpl::WatchForReset() {
  if (peer_gone_ || stop_watch_) return;
  watching_ = true;
  socket_.async_wait(net::socket_base::wait_error, [self = shared_from_this()](error_code error) {
    self->watching_ = false;
    if (!error && !self->stop_watch_) self->peer_gone_ = true;
    self->wake_.cancel();
  });
}

net::awaitable<void> SessionImpl::StopWatch() {
  stop_watch_ = true;
  if (watching_) {
    error_code ignored;
    socket_.cancel(ignored);
  }
  while (watching_) {
    wake_.expires_at(net::steady_timer::time_point::max());
    (void)co_await wake_.async_wait(kAwait);
  }
}

// ---- Timers and wake-ups ----

void SessionImpl::ArmTimer(milliseconds timeout) {
  timed_out_ = false;
  timer_.expires_after(timeout);
  timer_.async_wait([self = shared_from_this(), epoch = ++timer_epoch_](error_code error) {
    if (error || epoch != self->timer_epoch_) return;
    self->timed_out_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

void SessionImpl::DisarmTimer() {
  ++timer_epoch_;
  timer_.cancel();
}

void SessionImpl::Wake() {
  if (wake_posted_.exchange(true)) return;
  net::post(socket_.get_executor(), [self = shared_from_this()] {
    self->wake_posted_ = false;
    self->wake_.cancel();
  });
}

void SessionImpl::Close() {
  error_code ignored;
  socket_.close(ignored);
}

}  // namespace

std::weak_ptr<Session> StartSession(net::ip::tcp::socket socket, SessionContext* context) {
  auto session = std::make_shared<SessionImpl>(std::move(socket), context);
  session->Start();
  return session;
}

}  // namespace nibble::server
