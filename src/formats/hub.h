// Models by name: a folder, a GGUF file, or a repository of the Hugging Face hub.
//
// Downloads go to the Hugging Face cache (hub_cache.h) and are shared with its other users. A
// snapshot is written so that an interruption leaves nothing half-made: content under its hash
// after verification, then the link, then the ref. Thread-safety: any thread; processes that pull
// the same file wait for each other.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "formats/hub_cache.h"

namespace nibble::formats {

// Makes the cache hold the newest commit of the revision: what IsWantedFile names. Returns the
// snapshot's folder. Offline: what the cache holds.
Result<std::string> PullModel(const RepoId& repo, const HubOptions& options);

// MODEL of every command: a folder with config.json, a .gguf file, or org/name[@revision] (the
// cache's complete snapshot, else a download). Returns the path for OpenCheckpoint. The error says
// what was tried.
Result<std::string> ResolveModel(const std::string& model, const HubOptions& options);
Result<std::string> ResolveModel(const std::string& model);  // options of the environment

}  // namespace nibble::formats
