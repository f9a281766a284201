// One HTTP request at a time, for the hub: no redirects followed, bodies streamed to a callback.
//
// The transport is libcurl, opened with dlopen at the first request, so that the binary starts on
// machines without it and brings neither TLS roots nor proxy rules of its own: libcurl verifies
// certificates against the system's store and honours HTTPS_PROXY and friends.
// Thread-safety: an HttpClient belongs to one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace nibble::formats {

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; the last of its name
  std::string body;                            // empty when a sink took it

  // "" when absent.
  std::string_view Header(std::string_view lower_case_name) const;
  // Content-Length as a number.
  std::optional<int64_t> ContentLength() const;
};

struct HttpRequest {
  std::string url;
  bool head = false;                                         // HEAD instead of GET
  std::vector<std::pair<std::string, std::string>> headers;  // name, value
  int connect_timeout_s = 10;
  int idle_timeout_s = 10;                // without a byte
  int64_t max_body = int64_t{256} << 20;  // of HttpResponse::body
  // Called with each piece of a 2xx body, status and headers complete. An error ends the request
  // and is returned.
  std::function<Status(const HttpResponse& head, std::string_view piece)> sink;
};

class HttpClient {
 public:
  // kUnavailable when libcurl is not installed.
  static Result<HttpClient> Make();
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;
  ~HttpClient();

  // Any status is a response. kUnavailable: no connection, TLS failure, time-out, or a body that
  // ended early. Only http and https.
  Result<HttpResponse> Perform(const HttpRequest& request);

 private:
  struct Impl;
  explicit HttpClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::formats
