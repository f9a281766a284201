#include "server/guard.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "server/api/errors.h"

namespace nibble::server {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return out;
}

// The part of "scheme://host:port" behind the scheme.
std::string_view Authority(std::string_view origin) {
  const size_t at = origin.find("://");
  return at == std::string_view::npos ? std::string_view() : origin.substr(at + 3);
}

bool Contains(const std::vector<std::string>& list, std::string_view value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

std::string HostName(std::string_view host) {
  if (host.starts_with('[')) {
    const size_t end = host.find(']');
    return end == std::string_view::npos ? std::string() : Lower(host.substr(1, end - 1));
  }
  std::string name = Lower(host.substr(0, host.find(':')));
  if (name.ends_with('.')) name.pop_back();
  return name;
}

bool IsLoopbackName(std::string_view name) {
  if (name == "localhost" || name == "::1" || name.ends_with(".localhost")) return true;
  // 127.0.0.0/8, digits and dots only: "127.evil.example" is a name.
  return name.starts_with("127.") &&
         name.find_first_not_of("0123456789.") == std::string_view::npos;
}

Guard::Guard(const GuardOptions& options)
    : allowed_origins_(options.allowed_origins), loopback_(options.loopback) {
  for (const std::string& key : options.api_keys) keys_.push_back(Hash(key));
  for (const std::string& host : options.allowed_hosts) allowed_hosts_.push_back(Lower(host));
  any_origin_ = Contains(allowed_origins_, "*");
}

Guard::Digest Guard::Hash(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

bool Guard::HasKey(const HttpRequest& request) const {
  if (keys_.empty()) return true;
  constexpr size_t kScheme = 7;  // "Bearer "
  const std::string_view value = request.Header("authorization");
  if (value.size() < kScheme || Lower(value.substr(0, kScheme)) != "bearer ") return false;
  const Digest given = Hash(value.substr(kScheme));
  bool found = false;
  for (const Digest& key : keys_) {
    found = (CRYPTO_memcmp(key.data(), given.data(), key.size()) == 0) || found;
  }
  return found;
}

std::optional<std::string> Guard::CheckOrigin(const HttpRequest& request) const {
  if (!loopback_) return std::nullopt;
  const std::string_view host = request.Header("host");
  const std::string name = HostName(host);
  if (!host.empty() && !IsLoopbackName(name) && !Contains(allowed_hosts_, name)) {
    return "Host " + Quote(host) +
           " is not a name of this machine's loopback address; allow it with --allowed-hosts, or "
           "listen "
           "on another address with --host";
  }
  const std::string_view origin = request.Header("origin");
  if (origin.empty() || any_origin_ || Contains(allowed_origins_, origin)) return std::nullopt;
  const std::string_view authority = Authority(origin);
  if (!authority.empty() &&
      (Lower(authority) == Lower(host) || IsLoopbackName(HostName(authority)))) {
    return std::nullopt;
  }
  return "Origin " + Quote(origin) + " may not use this server; allow it with --allowed-origins";
}

std::string Guard::AllowedOrigin(const HttpRequest& request) const {
  const std::string_view origin = request.Header("origin");
  if (origin.empty()) return {};
  if (any_origin_) return "*";
  if (Contains(allowed_origins_, origin)) return std::string(origin);
  if (loopback_ && keys_.empty() && IsLoopbackName(HostName(Authority(origin)))) {
    return std::string(origin);
  }
  return {};
}

}  // namespace nibble::server
