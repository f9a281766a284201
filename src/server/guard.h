// Who may ask: API keys, and on loopback the checks that keep web pages of other origins out.
//
// A page on some site can make a browser send requests to 127.0.0.1, or rebind a DNS name to it. So
// a server on loopback answers only requests whose Host names this machine, and whose Origin, if
// any, is its own, another page on this machine, or one that the operator allowed. Immutable;
// thread-safe.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/exchange.h"

namespace nibble::server {

struct GuardOptions {
  std::vector<std::string> api_keys;         // any of them; none: no key is needed
  std::vector<std::string> allowed_origins;  // "https://example.com", or "*"
  std::vector<std::string> allowed_hosts;    // beside this machine's loopback names
  bool loopback = true;                      // only reachable from this machine
};

class Guard {
 public:
  explicit Guard(const GuardOptions& options);

  // "Authorization: Bearer KEY". Digests are compared, in constant time, and all of them.
  bool HasKey(const HttpRequest& request) const;
  // What is wrong with Host or Origin, for a 403; nothing when they are fine.
  std::optional<std::string> CheckOrigin(const HttpRequest& request) const;
  // The value of Access-Control-Allow-Origin for this request; empty: none.
  std::string AllowedOrigin(const HttpRequest& request) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest Hash(std::string_view text);

  std::vector<Digest> keys_;
  std::vector<std::string> allowed_origins_;
  std::vector<std::string> allowed_hosts_;
  bool loopback_;
  bool any_origin_ = false;
};

// "example.com:8000" → "example.com", "[::1]:80" → "::1", in lower case.
std::string HostName(std::string_view host);
bool IsLoopbackName(std::string_view name);

}  // namespace nibble::server
