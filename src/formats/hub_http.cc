#include "formats/hub_http.h"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <exception>

namespace nibble::formats {
namespace {

// The part of libcurl's stable C interface (since 7.19) that is used here. Values from its ABI.
struct Curl;
struct CurlList;
constexpr int kOk = 0;
constexpr int kGlobalAll = 3;
enum Option : int {
  kNoBody = 44,
  kFollowLocation = 52,
  kNoSignal = 99,
  kLowSpeedLimit = 19,
  kLowSpeedTime = 20,
  kConnectTimeout = 78,
  kProtocols = 181,
  kUrl = 10002,
  kWriteData = 10001,
  kErrorBuffer = 10010,
  kUserAgent = 10018,
  kHttpHeader = 10023,
  kHeaderData = 10029,
  kWriteFunction = 20011,
  kHeaderFunction = 20079,
};
constexpr long kProtocolHttpAndHttps = 3;
constexpr size_t kErrorBufferSize = 256;

struct Library {
  int (*global_init)(long) = nullptr;
  Curl* (*easy_init)() = nullptr;
  int (*easy_setopt)(Curl*, int, ...) = nullptr;
  int (*easy_perform)(Curl*) = nullptr;
  void (*easy_cleanup)(Curl*) = nullptr;
  void (*easy_reset)(Curl*) = nullptr;
  const char* (*easy_strerror)(int) = nullptr;
  CurlList* (*slist_append)(CurlList*, const char*) = nullptr;
  void (*slist_free_all)(CurlList*) = nullptr;
};

template <typename Function>
bool Bind(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(::dlsym(handle, name));
  return *function != nullptr;
}

// Never closed: libcurl registers exit handlers of its own libraries.
const Library* LoadLibrary() {
  static const Library* const loaded = []() -> const Library* {
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4", "libcurl.so"}) {
      void* handle = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle == nullptr) continue;
      auto* library = new Library();
      if (Bind(handle, "curl_global_init", &library->global_init) &&
          Bind(handle, "curl_easy_init", &library->easy_init) &&
          Bind(handle, "curl_easy_setopt", &library->easy_setopt) &&
          Bind(handle, "curl_easy_perform", &library->easy_perform) &&
          Bind(handle, "curl_easy_cleanup", &library->easy_cleanup) &&
          Bind(handle, "curl_easy_reset", &library->easy_reset) &&
          Bind(handle, "curl_easy_strerror", &library->easy_strerror) &&
          Bind(handle, "curl_slist_append", &library->slist_append) &&
          Bind(handle, "curl_slist_free_all", &library->slist_free_all) &&
          library->global_init(kGlobalAll) == kOk) {
        return library;
      }
      delete library;
    }
    return nullptr;
  }();
  return loaded;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.back() == ' ' || text.back() == '\r' || text.back() == '\n')) {
    text.remove_suffix(1);
  }
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  return text;
}

// What the callbacks of one request fill in.
struct Transfer {
  const HttpRequest* request = nullptr;
  HttpResponse response;
  std::optional<Error> error;  // of the sink, or a body that is too large
};

// "HTTP/1.1 206 Partial Content" starts a response (also after "100 Continue").
void ReadStatusLine(std::string_view line, HttpResponse* response) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) return;
  response->headers.clear();
  response->status = 0;
  std::from_chars(line.data() + space + 1, line.data() + line.size(), response->status);
}

size_t OnHeader(const char* data, size_t size, size_t count, void* context) {
  auto* transfer = static_cast<Transfer*>(context);
  const std::string_view line = Trim({data, size * count});
  if (line.starts_with("HTTP/")) {
    ReadStatusLine(line, &transfer->response);
  } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
    std::string name(line.substr(0, colon));
    std::ranges::transform(name, name.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    transfer->response.headers[name] = Trim(line.substr(colon + 1));
  }
  return size * count;
}

// Returns whether the transfer goes on.
bool TakePiece(std::string_view piece, Transfer* transfer) {
  HttpResponse& response = transfer->response;
  if (transfer->request->sink && response.status / 100 == 2) {
    const Status status = transfer->request->sink(response, piece);
    if (!status) transfer->error = status.error();
    return status.has_value();
  }
  const auto room = transfer->request->max_body - static_cast<int64_t>(response.body.size());
  if (static_cast<int64_t>(piece.size()) > room) {
    transfer->error =
        Error(Code::kTooLarge, fmt::format("{}: the answer exceeds {} bytes",
                                           transfer->request->url, transfer->request->max_body));
    return false;
  }
  response.body += piece;
  return true;
}

size_t OnBody(const char* data, size_t size, size_t count, void* context) {
  auto* transfer = static_cast<Transfer*>(context);
  try {
    return TakePiece({data, size * count}, transfer) ? size * count : 0;
  } catch (const std::exception& exception) {  // must not cross the C frames of libcurl
    transfer->error = Error(Code::kInternal, exception.what());
    return 0;
  }
}

}  // namespace

std::string_view HttpResponse::Header(std::string_view lower_case_name) const {
  const auto found = headers.find(std::string(lower_case_name));
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

std::optional<int64_t> HttpResponse::ContentLength() const {
  const std::string_view text = Header("content-length");
  int64_t length = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
  if (error != std::errc() || end != text.data() + text.size() || length < 0) return std::nullopt;
  return length;
}

struct HttpClient::Impl {
  const Library* library;
  Curl* handle;

  ~Impl() { library->easy_cleanup(handle); }
};

HttpClient::HttpClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

Result<HttpClient> HttpClient::Make() {
  const Library* library = LoadLibrary();
  if (library == nullptr) {
    return Fail(Code::kUnavailable,
                "downloads need libcurl (libcurl.so.4): install the package libcurl4, or download "
                "the model by other means and pass its folder");
  }
  Curl* handle = library->easy_init();
  if (handle == nullptr) return Fail(Code::kInternal, "libcurl could not be initialised");
  return HttpClient(std::unique_ptr<Impl>(new Impl{library, handle}));
}

Result<HttpResponse> HttpClient::Perform(const HttpRequest& request) {
  const Library& curl = *impl_->library;
  Curl* handle = impl_->handle;
  curl.easy_reset(handle);  // keeps connections alive
  Transfer transfer{.request = &request};
  char message[kErrorBufferSize] = "";
  CurlList* headers = nullptr;
  for (const auto& [name, value] : request.headers) {
    headers = curl.slist_append(headers, fmt::format("{}: {}", name, value).c_str());
  }
  curl.easy_setopt(handle, kUrl, request.url.c_str());
  curl.easy_setopt(handle, kProtocols, kProtocolHttpAndHttps);
  curl.easy_setopt(handle, kFollowLocation, 0L);
  curl.easy_setopt(handle, kNoSignal, 1L);
  curl.easy_setopt(handle, kNoBody, request.head ? 1L : 0L);
  curl.easy_setopt(handle, kHttpHeader, headers);
  curl.easy_setopt(handle, kUserAgent, "nibble");
  curl.easy_setopt(handle, kConnectTimeout, static_cast<long>(request.connect_timeout_s));
  curl.easy_setopt(handle, kLowSpeedLimit, 1L);
  curl.easy_setopt(handle, kLowSpeedTime, static_cast<long>(request.idle_timeout_s));
  curl.easy_setopt(handle, kErrorBuffer, message);
  curl.easy_setopt(handle, kWriteFunction, &OnBody);
  curl.easy_setopt(handle, kWriteData, &transfer);
  curl.easy_setopt(handle, kHeaderFunction, &OnHeader);
  curl.easy_setopt(handle, kHeaderData, &transfer);
  const int code = curl.easy_perform(handle);
  curl.slist_free_all(headers);
  if (transfer.error) return tl::unexpected<Error>(*std::move(transfer.error));
  if (code != kOk) {
    return Fail(Code::kUnavailable, "{}: {}", request.url,
                message[0] != '\0' ? message : curl.easy_strerror(code));
  }
  return std::move(transfer.response);
}

}  // namespace nibble::formats
