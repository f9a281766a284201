// The Hugging Face cache on disk: environment, names, layout, and what is already there.
//
//   $HF_HUB_CACHE/models--Org--Name/refs/main                 the commit, 40 hex digits
//                                  /blobs/<etag>              content
//                                  /snapshots/<commit>/x.json -> ../../blobs/<etag>
//                                  .locks/models--Org--Name/<etag>.lock (beside models--...)
//
// Shared with huggingface_hub: both sides read each other's files and take the same locks.
// Thread-safety: pure functions over the file system.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::formats {

struct HubOptions {
  std::string endpoint = "https://huggingface.co";  // without a trailing slash
  std::string cache;                                // the folder of models--...
  std::string token;                                // "" for none
  bool offline = false;
  bool symlinks = true;  // false: snapshots hold files of their own
  int etag_timeout_s = 10;
  int download_timeout_s = 10;
  bool quiet = false;        // no progress bar
  int attempts = 5;          // of a request that makes no progress
  int first_delay_ms = 500;  // between attempts, doubled each time up to 30 s
};

// HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_ENDPOINT, ... as
// huggingface_hub reads them. getenv: nullopt for unset.
using GetEnvironment = std::function<std::optional<std::string>(std::string_view name)>;
HubOptions ReadHubOptions(const GetEnvironment& getenv);
HubOptions HubOptionsFromEnvironment();

struct RepoId {
  std::string name;               // "org/name"
  std::string revision = "main";  // a branch, a tag or a commit
};

// "org/name[@revision]"; nullopt for anything else.
std::optional<RepoId> ParseRepoId(std::string_view text);

bool IsCommit(std::string_view revision);  // 40 hex digits

// A path inside a repository that may be written below a folder: relative, no empty, "." or ".."
// segment, no backslash, drive letter or control character.
bool IsSafeRepoPath(std::string_view path);

// Whether an engine needs the file: configs, tokenizer, templates and safetensors of the top
// folder.
bool IsWantedFile(std::string_view path);

std::string RepoFolder(const HubOptions& options, const RepoId& repo);
std::string LockFolder(const HubOptions& options, const RepoId& repo);

// The snapshot of the revision if it is complete: config.json, a tokenizer, and all shards that
// an index names (else any safetensors file). kNotFound says what is missing.
Result<std::string> FindSnapshot(const HubOptions& options, const RepoId& repo);

}  // namespace nibble::formats
