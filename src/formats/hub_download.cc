#include "formats/hub_download.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/url.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/log.h"

namespace nibble::formats {
namespace {

namespace urls = boost::urls;

constexpr int kMaxRedirects = 10;
constexpr int kMaxDelayMs = 30'000;

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool IsTransient(int status) { return status == 408 || status == 429 || status >= 500; }

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "127.0.0.1" || host == "[::1]";
}

Result<urls::url> ParseUrl(std::string_view text) {
  const auto parsed = urls::parse_uri(text);
  if (!parsed || (parsed->scheme() != "https" && parsed->scheme() != "http") ||
      parsed->host().empty()) {
    return Fail(Code::kInvalidArgument, "'{}' is not an http or https address", text);
  }
  return urls::url(*parsed);
}

std::string PortOf(const urls::url& url) {
  if (!url.port().empty()) return url.port();
  return url.scheme() == "https" ? "443" : "80";
}

bool SameServer(const urls::url& a, const urls::url& b) {
  return a.scheme() == b.scheme() && a.host() == b.host() && PortOf(a) == PortOf(b);
}

// Where a redirect leads. Plain http is not accepted in place of https.
Result<urls::url> ResolveLocation(const urls::url& base, std::string_view location) {
  const auto reference = urls::parse_uri_reference(location);
  urls::url target;
  if (!reference || !urls::resolve(base, *reference, target)) {
    return Fail(Code::kUnavailable, "{}: redirects to '{}', which is no address", base.buffer(),
                location);
  }
  NIBBLE_ASSIGN(target, ParseUrl(target.buffer()));
  if (base.scheme() == "https" && target.scheme() != "https") {
    return Fail(Code::kUnavailable, "{}: redirects to {}, which is not encrypted", base.buffer(),
                target.buffer());
  }
  return target;
}

std::string StatusMessage(const HttpResponse& response) {
  const std::string_view message = response.Header("x-error-message");
  return message.empty() ? fmt::format("HTTP {}", response.status)
                         : fmt::format("HTTP {}: {}", response.status, message);
}

// "bytes 100-199/200" -> {100, 200}; a total of "*" is -1.
struct ContentRange {
  int64_t begin = -1;
  int64_t total = -1;
};

std::optional<ContentRange> ParseContentRange(std::string_view text) {
  constexpr std::string_view kUnit = "bytes ";
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (!text.starts_with(kUnit) || dash == std::string_view::npos ||
      slash == std::string_view::npos || dash > slash) {
    return std::nullopt;
  }
  ContentRange range;
  const auto number = [](std::string_view digits, int64_t* value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *value);
    return error == std::errc() && end == digits.data() + digits.size();
  };
  if (!number(text.substr(kUnit.size(), dash - kUnit.size()), &range.begin)) return std::nullopt;
  const std::string_view total = text.substr(slash + 1);
  if (total != "*" && !number(total, &range.total)) return std::nullopt;
  return range;
}

// A partial download, open for writing at its end.
class PartialFile {
 public:
  static Result<PartialFile> Open(const std::string& path) {
    PartialFile file(path, ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    struct stat info;
    if (file.fd_ < 0 || ::fstat(file.fd_, &info) != 0) return file.FailErrno("open");
    file.size_ = info.st_size;
    return file;
  }
  PartialFile(PartialFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  PartialFile& operator=(PartialFile&&) = delete;
  ~PartialFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  int64_t size() const { return size_; }

  Status Clear() {
    if (::ftruncate(fd_, 0) != 0) return FailErrno("truncate");
    size_ = 0;
    return {};
  }

  Status Append(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t put = ::pwrite(fd_, bytes.data(), bytes.size(), size_);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return FailErrno("write");
      size_ += put;
      bytes.remove_prefix(static_cast<size_t>(put));
    }
    return {};
  }

  Status Sync() {
    if (::fsync(fd_) != 0) return FailErrno("sync");
    return {};
  }

 private:
  PartialFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  // A full disk is no reason to try again.
  tl::unexpected<Error> FailErrno(std::string_view action) const {
    const int error = errno;
    return Fail(error == ENOSPC ? Code::kResourceExhausted : Code::kInternal, "{}: cannot {}: {}",
                path_, action, std::strerror(error));
  }

  std::string path_;
  int fd_;
  int64_t size_ = 0;
};

struct DigestDeleter {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

Result<std::string> HashFile(const std::string& path, const EVP_MD* algorithm,
                             std::string_view preamble) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Fail(Code::kInternal, "{}: cannot open: {}", path, std::strerror(errno));
  const std::unique_ptr<EVP_MD_CTX, DigestDeleter> context(EVP_MD_CTX_new());
  bool good = context != nullptr && EVP_DigestInit_ex(context.get(), algorithm, nullptr) == 1 &&
              EVP_DigestUpdate(context.get(), preamble.data(), preamble.size()) == 1;
  std::vector<char> chunk(size_t{1} << 20);
  while (good) {
    const ssize_t got = ::read(fd, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) break;
    good = got > 0 && EVP_DigestUpdate(context.get(), chunk.data(), static_cast<size_t>(got)) == 1;
  }
  ::close(fd);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int length = 0;
  if (!good || EVP_DigestFinal_ex(context.get(), digest.data(), &length) != 1) {
    return Fail(Code::kInternal, "{}: cannot be read to verify its hash", path);
  }
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

int64_t FileSize(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 ? info.st_size : -1;
}

}  // namespace

// Counts attempts that made no progress, and waits between them.
class HubConnection::Retry {
 public:
  explicit Retry(const HubOptions& options)
      : left_(options.attempts), delay_ms_(options.first_delay_ms), first_delay_ms_(delay_ms_) {
    attempts_ = options.attempts;
  }

  void MadeProgress() {
    left_ = attempts_;
    delay_ms_ = first_delay_ms_;
  }

  // False when no attempt is left. retry_after: the header's value, may be empty.
  bool Wait(std::string_view why, std::string_view retry_after = "") {
    if (--left_ <= 0) return false;
    int wait_ms = delay_ms_;
    int seconds = 0;
    const auto [end, error] =
        std::from_chars(retry_after.data(), retry_after.data() + retry_after.size(), seconds);
    if (!retry_after.empty() && error == std::errc() && seconds >= 0) {
      wait_ms = std::min(seconds, kMaxDelayMs / 1000) * 1000;
    }
    LogInfo("{}; trying again in {:.1f} s", why, wait_ms / 1000.0);
    std::this_thread::sleep_for(std::chrono::milliseconds(wait_ms));
    delay_ms_ = std::min(delay_ms_ * 2, kMaxDelayMs);
    return true;
  }

 private:
  int attempts_;
  int left_;
  int delay_ms_;
  int first_delay_ms_;
};

Result<HubConnection> HubConnection::Make(const HubOptions& options) {
  NIBBLE_TRY(ParseUrl(options.endpoint).map_error([](const Error& error) {
    return error.Context("HF_ENDPOINT");
  }));
  NIBBLE_ASSIGN(auto client, HttpClient::Make());
  return HubConnection(std::move(client), options);
}

// leave_endpoint: follow redirects to other servers too. left_endpoint (may be null): whether the
// answer came from another server.
Result<HttpResponse> HubConnection::Follow(HttpRequest request, bool leave_endpoint,
                                           bool* left_endpoint) {
  NIBBLE_ASSIGN(const urls::url endpoint, ParseUrl(options_.endpoint));
  NIBBLE_ASSIGN(urls::url url, ParseUrl(request.url));
  const auto plain_headers = request.headers;
  request.connect_timeout_s = options_.etag_timeout_s;
  request.idle_timeout_s = options_.download_timeout_s;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    const bool at_endpoint = SameServer(url, endpoint);
    if (left_endpoint != nullptr) *left_endpoint = !at_endpoint;
    request.url = url.buffer();
    request.headers = plain_headers;
    if (!options_.token.empty() && at_endpoint &&
        (url.scheme() == "https" || IsLoopback(url.host()))) {
      request.headers.emplace_back("Authorization", "Bearer " + options_.token);
    }
    NIBBLE_ASSIGN(HttpResponse response, client_.Perform(request));
    const std::string_view location = response.Header("location");
    if (!IsRedirect(response.status) || location.empty()) return response;
    NIBBLE_ASSIGN(urls::url target, ResolveLocation(url, location));
    if (!leave_endpoint && !SameServer(target, endpoint)) return response;
    url = std::move(target);
  }
  return Fail(Code::kUnavailable, "{}: more than {} redirects", request.url, kMaxRedirects);
}

Result<HttpResponse> HubConnection::WithRetries(const HttpRequest& request, bool leave_endpoint) {
  Retry retry(options_);
  for (;;) {
    auto response = Follow(request, leave_endpoint, nullptr);
    if (response && !IsTransient(response->status)) return response;
    if (!response && response.error().code() != Code::kUnavailable) return response;
    const bool again =
        response ? retry.Wait(fmt::format("{}: {}", request.url, StatusMessage(*response)),
                              response->Header("retry-after"))
                 : retry.Wait(response.error().message());
    if (!again) return response;
  }
}

Result<HttpResponse> HubConnection::Get(const std::string& url) {
  return WithRetries({.url = url}, true);
}

Result<HttpResponse> HubConnection::Head(const std::string& url) {
  HttpRequest request{.url = url, .head = true};
  request.headers.emplace_back("Accept-Encoding", "identity");
  return WithRetries(request, false);
}

Status HubConnection::DownloadOnce(const std::string& url, const HubFile& file,
                                   const std::string& partial_path, Progress* progress) {
  NIBBLE_ASSIGN(PartialFile partial, PartialFile::Open(partial_path));
  const auto advance = [progress](int64_t amount) {
    if (progress != nullptr) progress->Advance(amount);
  };
  const auto restart = [&]() -> Status {
    advance(-partial.size());
    return partial.Clear();
  };
  advance(partial.size());
  if (partial.size() > file.size) NIBBLE_TRY(restart());

  Retry retry(options_);
  while (partial.size() < file.size) {
    const int64_t have = partial.size();
    bool started = false;
    HttpRequest request{.url = url};
    request.headers.emplace_back("Accept-Encoding", "identity");
    if (have > 0) request.headers.emplace_back("Range", fmt::format("bytes={}-", have));

    // Before the first byte of a body: does it continue what is there, and is it the file?
    const auto start = [&](const HttpResponse& head) -> Status {
      started = true;
      int64_t total = -1;
      if (head.status == 206) {
        const auto range = ParseContentRange(head.Header("content-range"));
        if (!range || range->begin != have) {
          return Fail(Code::kCorruption, "{}: asked for byte {} on, the server sends '{}'",
                      file.path, have, head.Header("content-range"));
        }
        total = range->total;
      } else {
        total = head.ContentLength().value_or(-1);
        if (have > 0) NIBBLE_TRY(restart());  // the server ignored the range
      }
      if (total >= 0 && total != file.size) {
        return Fail(Code::kCorruption, "{}: the hub lists {} bytes, the server sends {}", file.path,
                    file.size, total);
      }
      return {};
    };
    request.sink = [&](const HttpResponse& head, std::string_view piece) -> Status {
      if (!started) NIBBLE_TRY(start(head));
      if (static_cast<int64_t>(piece.size()) > file.size - partial.size()) {
        return Fail(Code::kCorruption, "{}: the server sends more than the {} bytes listed",
                    file.path, file.size);
      }
      NIBBLE_TRY(partial.Append(piece));
      advance(static_cast<int64_t>(piece.size()));
      return {};
    };

    bool left_endpoint = false;
    const auto response = Follow(std::move(request), true, &left_endpoint);
    if (partial.size() > have) retry.MadeProgress();
    std::string why;
    std::string_view retry_after;
    if (!response) {
      if (response.error().code() != Code::kUnavailable) {
        return tl::unexpected<Error>(response.error());
      }
      why = response.error().message();
    } else if (response->status / 100 == 2) {
      if (partial.size() == file.size) break;
      why = fmt::format("{}: {} of {} bytes arrived", file.path, partial.size(), file.size);
    } else if (response->status == 416) {
      NIBBLE_TRY(restart());
      why = fmt::format("{}: the server cannot resume", file.path);
    } else if (IsTransient(response->status) || (response->status == 403 && left_endpoint)) {
      why = fmt::format("{}: {}", file.path, StatusMessage(*response));  // 403: an expired address
      retry_after = response->Header("retry-after");
    } else {
      return Fail(response->status == 404 ? Code::kNotFound : Code::kUnavailable, "{}: {}",
                  file.path, StatusMessage(*response));
    }
    if (!retry.Wait(why, retry_after)) {
      return Fail(Code::kUnavailable,
                  "{}; gave up after {} attempts. What arrived is kept: the "
                  "same command continues",
                  why, options_.attempts);
    }
  }
  return partial.Sync();
}

Status HubConnection::Download(const std::string& url, const HubFile& file,
                               const std::string& partial, Progress* progress) {
  const bool resumed = FileSize(partial) > 0;
  Status verified;
  for (int attempt = 0; attempt < 2; ++attempt) {
    NIBBLE_TRY(DownloadOnce(url, file, partial, progress));
    verified = VerifyBlob(partial, file);
    if (verified) return {};
    ::unlink(partial.c_str());
    if (progress != nullptr) progress->Advance(-file.size);
    LogWarning("{}{}; fetching it again", verified.error().message(),
               resumed && attempt == 0 ? " (resumed from an earlier download)" : "");
  }
  return verified;
}

Status VerifyBlob(const std::string& path, const HubFile& file) {
  const int64_t size = FileSize(path);
  if (size != file.size) {
    return Fail(Code::kCorruption, "{}: has {} bytes, expected {}", file.path, size, file.size);
  }
  const bool sha256 = file.etag.size() == 64;
  if (!sha256 && file.etag.size() != 40) return {};  // no hash is known
  const std::string preamble = sha256 ? "" : fmt::format("blob {}", file.size) + '\0';
  NIBBLE_ASSIGN(const std::string hash,
                HashFile(path, sha256 ? EVP_sha256() : EVP_sha1(), preamble));
  if (hash != file.etag) {
    return Fail(Code::kCorruption, "{}: its {} is {}, expected {}", file.path,
                sha256 ? "SHA-256" : "git SHA-1", hash, file.etag);
  }
  return {};
}

Error HubError(const HubOptions& options, const HttpResponse& response, const RepoId& repo,
               std::string_view what) {
  const std::string_view code = response.Header("x-error-code");
  const std::string_view message = response.Header("x-error-message");
  const std::string page = fmt::format("{}/{}", options.endpoint, repo.name);
  const std::string_view token =
      options.token.empty() ? "no HF_TOKEN is set" : "the HF_TOKEN in use may not grant access";
  if (code == "GatedRepo") {
    return Error(Code::kUnauthenticated,
                 fmt::format("'{}' is gated: accept its terms at {} and set HF_TOKEN ({})",
                             repo.name, page, token));
  }
  if (code == "RevisionNotFound") {
    return Error(Code::kNotFound, fmt::format("'{}' has no revision '{}' (see {}/tree/main)",
                                              repo.name, repo.revision, page));
  }
  if (code == "EntryNotFound") {
    return Error(Code::kNotFound, fmt::format("'{}' has no file '{}'", repo.name, what));
  }
  if (message.find("Access to this resource is disabled") != std::string_view::npos) {
    return Error(Code::kUnavailable, fmt::format("'{}' has been disabled by the hub", repo.name));
  }
  if (code == "RepoNotFound" || response.status == 401 || response.status == 404) {
    return Error(Code::kNotFound,
                 fmt::format("'{}' was not found at {}. Check the spelling; a private repository "
                             "needs a token ({})",
                             repo.name, options.endpoint, token));
  }
  if (response.status == 403) {
    return Error(Code::kUnauthenticated, fmt::format("access to '{}' is forbidden ({}; {})",
                                                     repo.name, token, StatusMessage(response)));
  }
  return Error(Code::kUnavailable,
               fmt::format("{}: {} answers {}", what, options.endpoint, StatusMessage(response)));
}

}  // namespace nibble::formats
