#include "formats/hub.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <boost/url.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "formats/hub_download.h"
#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

std::string Encode(std::string_view text) {
  return boost::urls::encode(text, boost::urls::unreserved_chars);
}

// Each segment encoded, slashes kept.
std::string EncodePath(std::string_view path) {
  std::string out;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (!out.empty()) out += '/';
    out += Encode(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

// Beside `path`, and no other thread's or process's.
std::string TemporaryName(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  return fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter.fetch_add(1));
}

bool IsHash(std::string_view text) {
  return (text.size() == 40 || text.size() == 64) && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Status MakeFolders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return Fail(Code::kInternal, "{}: cannot create: {}", path, error.message());
  return {};
}

// Held for one file of the cache; huggingface_hub takes the same lock.
class FileLock {
 public:
  static Result<FileLock> Take(const std::string& path) {
    NIBBLE_TRY(MakeFolders(fs::path(path).parent_path().string()));
    FileLock lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (lock.fd_ < 0) {
      return Fail(Code::kInternal, "{}: cannot open: {}", path, std::strerror(errno));
    }
    if (::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      LogInfo("waiting for another download of the same file ({})", path);
      while (::flock(lock.fd_, LOCK_EX) != 0 && errno == EINTR) {
      }
    }
    return lock;
  }
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

// A commit and the files of it that are wanted.
struct RepoListing {
  std::string commit;
  std::vector<HubFile> files;
};

class Puller {
 public:
  Puller(const HubOptions& options, const RepoId& repo, HubConnection connection)
      : options_(options),
        repo_(repo),
        connection_(std::move(connection)),
        folder_(RepoFolder(options, repo)) {}

  Result<std::string> Run() {
    NIBBLE_ASSIGN(const RepoListing listing, List());
    const std::string snapshot = fmt::format("{}/snapshots/{}", folder_, listing.commit);
    NIBBLE_TRY(MakeFolders(folder_ + "/blobs"));
    NIBBLE_TRY(MakeFolders(snapshot));
    int64_t missing = 0;
    for (const HubFile& file : listing.files) {
      if (!HasBlob(file)) missing += file.size;
    }
    NIBBLE_TRY(CheckSpace(missing));
    {
      Progress progress(fmt::format("downloading {}", repo_.name), missing, Progress::Unit::kBytes,
                        options_.quiet || missing == 0);
      for (const HubFile& file : listing.files) {
        NIBBLE_TRY(Fetch(listing.commit, file, &progress));
        NIBBLE_TRY(Link(snapshot, file));
      }
    }
    NIBBLE_TRY(WriteRef(listing.commit));
    return snapshot;
  }

 private:
  Result<RepoListing> List() {
    const std::string url = fmt::format("{}/api/models/{}/revision/{}?blobs=true",
                                        options_.endpoint, repo_.name, Encode(repo_.revision));
    NIBBLE_ASSIGN(const HttpResponse response, connection_.Get(url));
    if (response.status != 200) {
      return tl::unexpected<Error>(HubError(options_, response, repo_, repo_.name));
    }
    NIBBLE_ASSIGN(const json::object info, ParseJsonObject(response.body, url));
    RepoListing listing;
    const json::value* commit = info.if_contains("sha");
    if (commit != nullptr && commit->is_string()) listing.commit = commit->get_string();
    const json::value* siblings = info.if_contains("siblings");
    if (!IsCommit(listing.commit) || siblings == nullptr || !siblings->is_array()) {
      return Fail(Code::kUnavailable, "{}: the answer names no commit or no files", url);
    }
    bool gguf = false;
    for (const json::value& sibling : siblings->get_array()) {
      const json::value* name =
          sibling.is_object() ? sibling.get_object().if_contains("rfilename") : nullptr;
      if (name == nullptr || !name->is_string()) continue;
      const std::string_view path = name->get_string();
      gguf |= path.ends_with(".gguf");
      if (!IsSafeRepoPath(path)) {
        return Fail(Code::kCorruption, "'{}' lists a file with the unsafe name {}", repo_.name,
                    Quoted(path));
      }
      if (!IsWantedFile(path)) continue;
      NIBBLE_ASSIGN(HubFile file, Describe(listing.commit, path, sibling.get_object()));
      listing.files.push_back(std::move(file));
    }
    NIBBLE_TRY(CheckIsModel(listing, gguf));
    return listing;
  }

  // Size and hash as listed, else as the file's own headers say.
  Result<HubFile> Describe(const std::string& commit, std::string_view path,
                           const json::object& sibling) {
    HubFile file{.path = std::string(path), .etag = "", .size = -1};
    const auto text = [](const json::object& object, std::string_view key) -> std::string {
      const json::value* value = object.if_contains(key);
      return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
    };
    file.etag = text(sibling, "blobId");
    if (const json::value* lfs = sibling.if_contains("lfs"); lfs != nullptr && lfs->is_object()) {
      file.etag = text(lfs->get_object(), "sha256");
    }
    if (const json::value* size = sibling.if_contains("size");
        size != nullptr && size->is_int64() && size->get_int64() >= 0) {
      file.size = size->get_int64();
    }
    if (file.size >= 0 && IsHash(file.etag)) return file;
    return DescribeByHead(commit, path);
  }

  Result<HubFile> DescribeByHead(const std::string& commit, std::string_view path) {
    NIBBLE_ASSIGN(const HttpResponse head, connection_.Head(FileUrl(commit, path)));
    if (head.status >= 400) {
      return tl::unexpected<Error>(HubError(options_, head, repo_, path));
    }
    std::string_view etag = head.Header("x-linked-etag");
    if (etag.empty()) etag = head.Header("etag");
    if (etag.starts_with("W/")) etag.remove_prefix(2);
    if (etag.starts_with('"')) etag.remove_prefix(1);
    if (etag.ends_with('"')) etag.remove_suffix(1);
    const std::string_view linked = head.Header("x-linked-size");
    int64_t size = head.status == 200 ? head.ContentLength().value_or(-1) : -1;
    if (!linked.empty()) std::from_chars(linked.data(), linked.data() + linked.size(), size);
    if (!IsHash(etag) || size < 0) {
      return Fail(Code::kUnavailable, "{}: the hub tells neither size nor hash of {}", repo_.name,
                  path);
    }
    return HubFile{.path = std::string(path), .etag = std::string(etag), .size = size};
  }

  Status CheckIsModel(const RepoListing& listing, bool gguf) const {
    const auto has = [&](std::string_view ending) {
      return std::ranges::any_of(listing.files,
                                 [&](const HubFile& file) { return file.path.ends_with(ending); });
    };
    if (has("config.json") && has(".safetensors")) return {};
    return Fail(Code::kUnsupported, "'{}' holds no model in safetensors form{}", repo_.name,
                gguf ? ", but GGUF files: download one of them and pass its path" : "");
  }

  std::string FileUrl(const std::string& commit, std::string_view path) const {
    return fmt::format("{}/{}/resolve/{}/{}", options_.endpoint, repo_.name, commit,
                       EncodePath(path));
  }

  std::string BlobPath(const HubFile& file) const {
    return fmt::format("{}/blobs/{}", folder_, file.etag);
  }

  // Content is stored under its hash, after verification: the size tells a whole blob.
  bool HasBlob(const HubFile& file) const {
    struct stat info;
    return ::stat(BlobPath(file).c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           info.st_size == file.size;
  }

  Status CheckSpace(int64_t bytes) const {
    struct statvfs info;
    if (bytes == 0 || ::statvfs(folder_.c_str(), &info) != 0) return {};
    const auto free = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
    if (static_cast<double>(bytes) <= free) return {};
    return Fail(Code::kResourceExhausted,
                "'{}' needs {} more, {} has {} free; HF_HOME chooses another place", repo_.name,
                FormatBytes(static_cast<double>(bytes)), options_.cache, FormatBytes(free));
  }

  Status Fetch(const std::string& commit, const HubFile& file, Progress* progress) {
    if (HasBlob(file)) return {};
    NIBBLE_ASSIGN(const FileLock lock, FileLock::Take(fmt::format(
                                           "{}/{}.lock", LockFolder(options_, repo_), file.etag)));
    const std::string blob = BlobPath(file);
    if (HasBlob(file)) {  // another process was faster
      progress->Advance(file.size);
      return {};
    }
    const std::string partial = blob + ".incomplete";
    NIBBLE_TRY(connection_.Download(FileUrl(commit, file.path), file, partial, progress));
    if (::rename(partial.c_str(), blob.c_str()) != 0) {
      return Fail(Code::kInternal, "{}: cannot rename to {}: {}", partial, blob,
                  std::strerror(errno));
    }
    return {};
  }

  // snapshots/<commit>/<path> -> the blob. Replaces what is there in one step.
  Status Link(const std::string& snapshot, const HubFile& file) const {
    const std::string path = fmt::format("{}/{}", snapshot, file.path);
    NIBBLE_TRY(MakeFolders(fs::path(path).parent_path().string()));
    std::string target = "../../";
    for (const char c : file.path) target += c == '/' ? "../" : "";
    target += "blobs/" + file.etag;
    std::error_code error;
    if (options_.symlinks && fs::read_symlink(path, error) == target) return {};
    const std::string temporary = TemporaryName(path);
    fs::remove(temporary, error);
    error.clear();
    if (options_.symlinks) {
      fs::create_symlink(target, temporary, error);
    } else {
      fs::create_hard_link(BlobPath(file), temporary, error);
    }
    if (error) {  // a file system without links
      error.clear();
      fs::copy_file(BlobPath(file), temporary, error);
    }
    if (!error) fs::rename(temporary, path, error);
    if (error) return Fail(Code::kInternal, "{}: cannot create: {}", path, error.message());
    return {};
  }

  Status WriteRef(const std::string& commit) const {
    if (IsCommit(repo_.revision)) return {};
    const std::string ref = fmt::format("{}/refs/{}", folder_, repo_.revision);
    NIBBLE_TRY(MakeFolders(fs::path(ref).parent_path().string()));
    return WriteFileAtomic(ref, commit);
  }

  const HubOptions& options_;
  const RepoId& repo_;
  HubConnection connection_;
  const std::string folder_;
};

tl::unexpected<Error> OfflineError(const RepoId& repo, const Error& missing) {
  return Fail(Code::kUnavailable,
              "'{}' is not complete in the cache ({}) and HF_HUB_OFFLINE forbids downloads",
              repo.name, missing.message());
}

}  // namespace

Result<std::string> PullModel(const RepoId& repo, const HubOptions& options) {
  if (options.offline) {
    auto snapshot = FindSnapshot(options, repo);
    if (!snapshot) return OfflineError(repo, snapshot.error());
    return snapshot;
  }
  NIBBLE_ASSIGN(auto connection, HubConnection::Make(options));
  return Puller(options, repo, std::move(connection)).Run();
}

Result<std::string> ResolveModel(const std::string& model, const HubOptions& options) {
  std::string tried;
  if (IsDirectory(model)) {
    if (FileExists(model + "/config.json")) return model;
    tried = "a folder, but without config.json";
  } else if (FileExists(model)) {
    if (model.ends_with(".gguf")) return model;
    tried = "a file, but not a .gguf file";
  } else {
    tried = "no folder or file of this name";
  }
  const auto repo = ParseRepoId(model);
  if (!repo) {
    return Fail(Code::kNotFound,
                "model '{}': {}; not a repository name either. Expected a folder with config.json, "
                "a .gguf file, or org/name[@revision]",
                model, tried);
  }
  const auto context = [&](const Error& error) {
    return error.Context(fmt::format("model '{}': {}; as a hub repository", model, tried));
  };
  auto snapshot = FindSnapshot(options, *repo);
  if (snapshot) return snapshot;
  return PullModel(*repo, options).map_error(context);
}

Result<std::string> ResolveModel(const std::string& model) {
  return ResolveModel(model, HubOptionsFromEnvironment());
}

}  // namespace nibble::formats
