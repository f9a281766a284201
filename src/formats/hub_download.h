// Requests to one hub, with its rules: redirects, the token, retries, and files that are resumed
// and verified.
//
// The token travels only to the endpoint's own host, over https (or plain http on loopback).
// Thread-safety: a HubConnection belongs to one thread; processes are kept apart by the caller's
// lock. Source: huggingface_hub's file_download.py for the protocol.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/progress.h"
#include "formats/hub_cache.h"
#include "formats/hub_http.h"

namespace nibble::formats {

struct HubFile {
  std::string path;  // in the repository
  std::string etag;  // SHA-256 (64 hex digits), or git's SHA-1 of a blob (40)
  int64_t size = 0;
};

class HubConnection {
 public:
  static Result<HubConnection> Make(const HubOptions& options);

  // GET or HEAD with redirects and retries. Any status that is final is a response.
  Result<HttpResponse> Get(const std::string& url);
  // Follows redirects within the endpoint alone: the headers of the hub, not of its storage.
  Result<HttpResponse> Head(const std::string& url);

  // Fetches file.size bytes into `partial`, continuing what is there, and verifies them. Short
  // bodies and lost connections are resumed; a wrong hash is fetched once more from the start.
  // kCorruption when sizes or hashes keep disagreeing. progress may be null.
  Status Download(const std::string& url, const HubFile& file, const std::string& partial,
                  Progress* progress);

 private:
  class Retry;
  HubConnection(HttpClient client, const HubOptions& options)
      : client_(std::move(client)), options_(options) {}

  Result<HttpResponse> WithRetries(const HttpRequest& request, bool leave_endpoint);
  Result<HttpResponse> Follow(HttpRequest request, bool leave_endpoint, bool* left_endpoint);
  Status DownloadOnce(const std::string& url, const HubFile& file, const std::string& partial,
                      Progress* progress);

  HttpClient client_;
  HubOptions options_;
};

// What a status other than 2xx means, for people: gated, not found, ... what: "org/name" or a file.
Error HubError(const HubOptions& options, const HttpResponse& response, const RepoId& repo,
               std::string_view what);

// OK when the file's content has that size and hash.
Status VerifyBlob(const std::string& path, const HubFile& file);

}  // namespace nibble::formats
