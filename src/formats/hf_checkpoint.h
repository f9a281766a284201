// A Hugging Face folder as a Checkpoint: config.json beside safetensors shards, mapped, nothing
// copied.
//
// Shards: those that model.safetensors.index.json names, else model.safetensors, else every
// *.safetensors except Mistral's consolidated* and adapter* files. Shard headers are the truth: a
// tensor that the index does not list is there all the same; one that it lists and no shard holds
// is absent (and reported once). Pickle files are never read.
//
// Thread-safety: as Checkpoint. Source: huggingface_hub's and transformers' folder conventions.
#pragma once

#include <boost/json.hpp>

#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

Result<std::unique_ptr<Checkpoint>> OpenHfFolder(const std::string& folder);

// config.json of a folder, which need not hold anything else.
Result<boost::json::object> ReadHfConfig(const std::string& folder);

// Whether a folder has weights: an index or *.safetensors.
bool HasShards(const std::string& folder);

// A file name out of an index: relative, below the folder, ends in .safetensors.
Status CheckShardName(std::string_view name, std::string_view index_file);

}  // namespace nibble::formats
