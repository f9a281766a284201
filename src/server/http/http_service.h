// What a network session asks of whoever answers requests. Called on network threads:
// implementations return at once and do anything that depends on the size of user data elsewhere.
#pragma once

#include <memory>
#include <string_view>

#include "server/http/exchange.h"

namespace nibble::server {

class HttpService {
 public:
  virtual ~HttpService() = default;

  // After the headers, before the body: true to go on; false when the exchange has been answered,
  // and then the body is not read. May add headers.
  virtual bool Screen(Exchange& exchange) = 0;
  // The body is there. Answers now or later, from any thread.
  virtual void Handle(std::shared_ptr<Exchange> exchange) = 0;
  // The answer to something that is not a request: bad syntax, too large, too slow.
  virtual HttpResponse ProtocolError(int status, std::string_view message) = 0;
  // After the answer, also when the client left (status 499).
  virtual void Answered(const HttpRequest& request, int status, size_t bytes) = 0;
};

}  // namespace nibble::server
