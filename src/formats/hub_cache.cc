#include "formats/hub_cache.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "base/file.h"
#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

bool IsTrue(const std::optional<std::string>& value) {
  if (!value) return false;
  std::string upper = *value;
  std::ranges::transform(upper, upper.begin(), [](char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  });
  return upper == "1" || upper == "ON" || upper == "YES" || upper == "TRUE";
}

int SecondsOr(const std::optional<std::string>& value, int fallback) {
  if (!value) return fallback;
  int seconds = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), seconds);
  const bool whole = error == std::errc() && end == value->data() + value->size();
  return whole && seconds > 0 ? seconds : fallback;
}

// "~" at the start, and $NAME or ${NAME} anywhere.
std::string Expand(std::string path, const GetEnvironment& getenv) {
  if (path == "~" || path.starts_with("~/")) {
    path.replace(0, 1, getenv("HOME").value_or("~"));
  }
  std::string out;
  for (size_t i = 0; i < path.size();) {
    if (path[i] != '$') {
      out += path[i++];
      continue;
    }
    const bool braced = i + 1 < path.size() && path[i + 1] == '{';
    const size_t begin = i + (braced ? 2 : 1);
    size_t end = begin;
    while (end < path.size() &&
           (std::isalnum(static_cast<unsigned char>(path[end])) || path[end] == '_')) {
      ++end;
    }
    const bool closed = !braced || (end < path.size() && path[end] == '}');
    const auto value =
        end > begin && closed ? getenv(path.substr(begin, end - begin)) : std::nullopt;
    const size_t next = braced && closed ? end + 1 : end;
    out += value ? *value : path.substr(i, next - i);  // unknown names stay, as in Python
    i = next;
  }
  return out;
}

std::string StripSpace(std::string text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\r' || c == '\n' || c == '\t'; };
  while (!text.empty() && is_space(text.back())) text.pop_back();
  while (!text.empty() && is_space(text.front())) text.erase(0, 1);
  return text;
}

std::string ReadToken(const GetEnvironment& getenv, const std::string& home) {
  if (IsTrue(getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return "";
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (const auto value = getenv(name)) {
      std::string token = StripSpace(*value);
      if (!token.empty()) return token;
    }
  }
  const auto path = getenv("HF_TOKEN_PATH");
  const auto token = ReadFile(path ? Expand(*path, getenv) : home + "/token", 4096);
  return token ? StripSpace(*token) : "";
}

bool IsNameCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
}

bool IsRepoPart(std::string_view part) {
  return !part.empty() && part.size() <= 96 && part.front() != '.' && part.front() != '-' &&
         part.find("--") == std::string_view::npos && part.find("..") == std::string_view::npos &&
         std::ranges::all_of(part, IsNameCharacter);
}

bool HasFile(const std::string& folder, std::string_view name) {
  return FileExists(fmt::format("{}/{}", folder, name));
}

// Files of weights that the index names; empty when there is no index.
Result<std::set<std::string>> ShardsOfIndex(const std::string& snapshot) {
  std::set<std::string> shards;
  const std::string path = snapshot + "/model.safetensors.index.json";
  if (!FileExists(path)) return shards;
  NIBBLE_ASSIGN(const std::string text, ReadFile(path));
  NIBBLE_ASSIGN(const json::object index, ParseJsonObject(text, path));
  const json::value* map = index.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return shards;
  for (const auto& [tensor, file] : map->get_object()) {
    if (file.is_string()) shards.emplace(file.get_string());
  }
  return shards;
}

bool HasAnySafetensors(const std::string& snapshot) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(snapshot, error)) {
    if (entry.path().extension() == ".safetensors" && fs::exists(entry.path(), error)) return true;
  }
  return false;
}

// What a tokenizer is read from.
constexpr std::string_view kTokenizerFiles[] = {"tokenizer.json", "tekken.json", "tiktoken.model"};

// OK, or the first file that is missing.
Status CheckComplete(const std::string& snapshot) {
  if (!HasFile(snapshot, "config.json")) {
    return Fail(Code::kNotFound, "{}: config.json is missing", snapshot);
  }
  if (std::ranges::none_of(kTokenizerFiles,
                           [&](std::string_view name) { return HasFile(snapshot, name); })) {
    return Fail(Code::kNotFound, "{}: tokenizer.json is missing, and so are {} and {}", snapshot,
                kTokenizerFiles[1], kTokenizerFiles[2]);
  }
  NIBBLE_ASSIGN(const auto shards, ShardsOfIndex(snapshot));
  for (const std::string& shard : shards) {
    if (!HasFile(snapshot, shard)) {
      return Fail(Code::kNotFound, "{}: {} is missing", snapshot, shard);
    }
  }
  if (shards.empty() && !HasAnySafetensors(snapshot)) {
    return Fail(Code::kNotFound, "{}: no safetensors file is there", snapshot);
  }
  return {};
}

}  // namespace

HubOptions ReadHubOptions(const GetEnvironment& getenv) {
  HubOptions options;
  std::string home;
  if (const auto set = getenv("HF_HOME")) {
    home = Expand(*set, getenv);
  } else if (const auto xdg = getenv("XDG_CACHE_HOME")) {
    home = Expand(*xdg, getenv) + "/huggingface";
  } else {
    home = Expand("~/.cache/huggingface", getenv);
  }
  options.cache = home + "/hub";
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const auto set = getenv(name)) {
      options.cache = Expand(*set, getenv);
      break;
    }
  }
  if (auto endpoint = getenv("HF_ENDPOINT")) {
    while (endpoint->ends_with('/')) endpoint->pop_back();
    if (!endpoint->empty()) options.endpoint = *endpoint;
  }
  options.token = ReadToken(getenv, home);
  options.offline = IsTrue(getenv("HF_HUB_OFFLINE")) || IsTrue(getenv("TRANSFORMERS_OFFLINE"));
  options.symlinks = !IsTrue(getenv("HF_HUB_DISABLE_SYMLINKS"));
  options.quiet = IsTrue(getenv("HF_HUB_DISABLE_PROGRESS_BARS"));
  options.etag_timeout_s = SecondsOr(getenv("HF_HUB_ETAG_TIMEOUT"), options.etag_timeout_s);
  options.download_timeout_s =
      SecondsOr(getenv("HF_HUB_DOWNLOAD_TIMEOUT"), options.download_timeout_s);
  return options;
}

HubOptions HubOptionsFromEnvironment() {
  return ReadHubOptions([](std::string_view name) -> std::optional<std::string> {
    const char* value = std::getenv(std::string(name).c_str());
    if (value == nullptr) return std::nullopt;
    return value;
  });
}

std::optional<RepoId> ParseRepoId(std::string_view text) {
  RepoId repo;
  const size_t at = text.find('@');
  if (at != std::string_view::npos) {
    repo.revision = text.substr(at + 1);
    if (!IsSafeRepoPath(repo.revision)) return std::nullopt;
  }
  const std::string_view name = text.substr(0, at);
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos || !IsRepoPart(name.substr(0, slash)) ||
      !IsRepoPart(name.substr(slash + 1))) {
    return std::nullopt;
  }
  repo.name = name;
  return repo;
}

bool IsCommit(std::string_view revision) {
  return revision.size() == 40 && std::ranges::all_of(revision, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

bool IsSafeRepoPath(std::string_view path) {
  if (path.empty() || path.size() > 1024) return false;
  if (path.size() > 1 && path[1] == ':') return false;
  if (std::ranges::any_of(path, [](char c) {
        return c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
      })) {
    return false;
  }
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view segment = path.substr(begin, end - begin);
    if (segment.empty() || segment == "." || segment == "..") return false;
    begin = end + 1;
  }
  return true;
}

bool IsWantedFile(std::string_view path) {
  constexpr std::string_view kTemplates = "additional_chat_templates/";
  if (path.starts_with(kTemplates)) path.remove_prefix(kTemplates.size());
  if (path.find('/') != std::string_view::npos || path.starts_with("consolidated")) return false;
  if (path == "tokenizer.model" || path == "tiktoken.model" || path == "merges.txt")
    return true;  // vocab.json is JSON
  constexpr std::array<std::string_view, 3> kEndings = {".json", ".jinja", ".safetensors"};
  return std::ranges::any_of(kEndings,
                             [path](std::string_view ending) { return path.ends_with(ending); });
}

std::string RepoFolder(const HubOptions& options, const RepoId& repo) {
  std::string name = repo.name;
  name.replace(name.find('/'), 1, "--");
  return fmt::format("{}/models--{}", options.cache, name);
}

std::string LockFolder(const HubOptions& options, const RepoId& repo) {
  std::string name = repo.name;
  name.replace(name.find('/'), 1, "--");
  return fmt::format("{}/.locks/models--{}", options.cache, name);
}

Result<std::string> FindSnapshot(const HubOptions& options, const RepoId& repo) {
  const std::string folder = RepoFolder(options, repo);
  std::string commit = repo.revision;
  if (!IsCommit(commit)) {
    const auto ref = ReadFile(fmt::format("{}/refs/{}", folder, repo.revision), 4096);
    if (!ref) {
      return Fail(Code::kNotFound, "{}: revision '{}' is not in the cache", folder, repo.revision);
    }
    commit = StripSpace(*ref);
    if (!IsCommit(commit)) {
      return Fail(Code::kCorruption, "{}/refs/{}: expected a commit of 40 hex digits", folder,
                  repo.revision);
    }
  }
  std::string snapshot = fmt::format("{}/snapshots/{}", folder, commit);
  if (!IsDirectory(snapshot)) {
    return Fail(Code::kNotFound, "{}: not in the cache", snapshot);
  }
  NIBBLE_TRY(CheckComplete(snapshot));
  return snapshot;
}

}  // namespace nibble::formats
