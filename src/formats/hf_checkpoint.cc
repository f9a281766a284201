#include "formats/hf_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "formats/json_file.h"
#include "formats/safetensors.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";
constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxTextBytes = size_t{256} << 20;

using Shard = std::shared_ptr<const SafetensorsFile>;

// Tensor name → place of its shard in ShardList::names, as the index claims; empty without an
// index.
using WeightMap = std::unordered_map<std::string, size_t>;

struct ShardList {
  std::vector<std::string> names;  // below the folder, sorted
  WeightMap index;
};

// A tensor and the shard it lies in.
struct Located {
  const SafetensorsEntry* entry = nullptr;
  size_t shard = 0;
};

class HfCheckpoint : public Checkpoint {
 public:
  HfCheckpoint(std::string folder, json::object config, std::vector<Shard> shards,
               const std::vector<Located>& sorted)
      : shards_(std::move(shards)) {
    path_ = std::move(folder);
    config_ = std::move(config);
    std::vector<TensorEntry> entries;
    entries.reserve(sorted.size());
    places_.reserve(sorted.size());
    for (const auto& [entry, shard] : sorted) {
      places_.push_back({shard, entry->begin});
      entries.push_back({entry->name, entry->dtype, entry->shape, entry->end - entry->begin,
                         std::string(DTypeName(entry->dtype))});
    }
    SetTensors(std::move(entries));
  }

  Result<std::string> ReadText(std::string_view name) const override {
    if (name.empty() || name.front() == '/' || name.find("..") != name.npos) {
      return Fail(Code::kInvalidArgument, "{}: not a file name below {}", Quoted(name), path_);
    }
    return ReadFile(path_ + "/" + std::string(name), kMaxTextBytes);
  }

  using Checkpoint::Read;
  Result<TensorData> Read(const TensorEntry& entry) const override {
    const bool is_own = !std::less<>()(&entry, tensors_.data()) &&
                        std::less<>()(&entry, tensors_.data() + tensors_.size());
    const TensorEntry* known = is_own ? &entry : Find(entry.name);
    if (known == nullptr) {
      return Fail(Code::kNotFound, "{}: no tensor {}", path_, Quoted(entry.name));
    }
    const Place& place = places_[static_cast<size_t>(known - tensors_.data())];
    const Shard& shard = shards_[place.shard];
    TensorData data;
    data.view = {shard->mapping.bytes().data() + place.offset, known->dtype, known->shape};
    data.owner = shard;
    return data;
  }

  void Release(const TensorEntry& entry) const override {
    const TensorEntry* known = Find(entry.name);
    if (known == nullptr) return;
    const Place& place = places_[static_cast<size_t>(known - tensors_.data())];
    shards_[place.shard]->mapping.Release(static_cast<size_t>(place.offset),
                                          static_cast<size_t>(known->stored_bytes));
  }

  void DropBehind(bool page_cache) const override {
    for (const Shard& shard : shards_) {
      if (page_cache) {
        shard->mapping.Drop();
      } else {
        shard->mapping.Release(0, shard->mapping.bytes().size());
      }
    }
  }

 private:
  struct Place {
    size_t shard;
    int64_t offset;
  };

  std::vector<Shard> shards_;
  std::vector<Place> places_;  // parallel to tensors_
};

Result<ShardList> ShardsFromIndex(const std::string& folder) {
  const std::string path = folder + "/" + kIndexFile;
  NIBBLE_ASSIGN(const std::string text, ReadFile(path, kMaxTextBytes));
  NIBBLE_ASSIGN(const json::object index, ParseJsonObject(text, path));
  const json::value* map = index.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) {
    return Fail(Code::kCorruption, "{}: no object \"weight_map\"", path);
  }
  ShardList list;
  std::map<std::string, size_t, std::less<>> names;
  for (const auto& [tensor, shard] : map->get_object()) {
    if (!shard.is_string()) {
      return Fail(Code::kCorruption, "{}: weight_map entry {} is not a file name", path,
                  Quoted(tensor));
    }
    const std::string_view name = shard.get_string();
    if (names.contains(name)) continue;
    NIBBLE_TRY(CheckShardName(name, path));
    names.emplace(name, 0);
  }
  for (auto& [name, place] : names) {
    if (!FileExists(folder + "/" + name)) {
      return Fail(Code::kNotFound,
                  "{}: names the shard {}, which is not in the folder; is the "
                  "download incomplete?",
                  path, Quoted(name));
    }
    place = list.names.size();
    list.names.push_back(name);
  }
  list.index.reserve(map->get_object().size());
  for (const auto& [tensor, shard] : map->get_object()) {
    list.index.emplace(tensor, names.find(std::string_view(shard.get_string()))->second);
  }
  return list;
}

Result<ShardList> ShardsFromListing(const std::string& folder) {
  ShardList list;
  std::error_code error;
  bool has_pickle = false;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    std::string name = it->path().filename().string();
    has_pickle = has_pickle || name.ends_with(".bin") || name.ends_with(".pt");
    std::error_code ignored;
    if (!name.ends_with(".safetensors") || !it->is_regular_file(ignored)) continue;
    if (name.starts_with("consolidated") || name.starts_with("adapter")) continue;
    list.names.push_back(std::move(name));
  }
  if (error) return Fail(Code::kUnavailable, "{}: cannot list: {}", folder, error.message());
  if (list.names.empty()) {
    return Fail(Code::kNotFound, "{}: no {}, {} or other *.safetensors{}", folder, kIndexFile,
                kSingleFile,
                has_pickle ? "; .bin and .pt files are not read, convert them to safetensors"
                           : "; --load-format dummy makes random weights of config.json's shapes");
  }
  std::sort(list.names.begin(), list.names.end());
  return list;
}

Result<ShardList> FindShards(const std::string& folder) {
  if (FileExists(folder + "/" + kIndexFile)) return ShardsFromIndex(folder);
  if (FileExists(folder + "/" + kSingleFile)) return ShardList{{kSingleFile}, {}};
  return ShardsFromListing(folder);
}

// All tensors of all shards by name. Of a name in two shards the index's choice stays.
Result<std::vector<Located>> Merge(const std::string& folder, const ShardList& list,
                                   const std::vector<Shard>& shards) {
  std::vector<Located> all;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (const SafetensorsEntry& entry : shards[shard]->header.tensors) {
      all.push_back({&entry, shard});
    }
  }
  std::ranges::stable_sort(
      all, {}, [](const Located& located) { return std::string_view(located.entry->name); });
  std::vector<Located> merged;
  merged.reserve(all.size());
  for (const Located& located : all) {
    const std::string& name = located.entry->name;
    if (merged.empty() || merged.back().entry->name != name) {
      merged.push_back(located);
      continue;
    }
    const auto choice = list.index.find(name);
    if (choice != list.index.end() && choice->second == located.shard) {
      merged.back() = located;
    } else if (choice == list.index.end() || choice->second != merged.back().shard) {
      return Fail(Code::kCorruption,
                  "{}: tensor {} is in {} and in {}, and no index says which "
                  "one counts",
                  folder, Quoted(name), list.names[merged.back().shard], list.names[located.shard]);
    }
  }
  return merged;
}

void ReportAbsentTensors(const Checkpoint& checkpoint, const WeightMap& index) {
  std::vector<std::string_view> absent;
  for (const auto& [name, shard] : index) {
    if (checkpoint.Find(name) == nullptr) absent.push_back(name);
  }
  if (absent.empty()) return;
  LogWarning("{}: {} lists {} tensors that no shard holds (one is {})", checkpoint.path(),
             kIndexFile, absent.size(), Quoted(*std::min_element(absent.begin(), absent.end())));
}

}  // namespace

Status CheckShardName(std::string_view name, std::string_view index_file) {
  const char* why = nullptr;
  if (name.empty() || name.size() > 1024) why = "its length is not between 1 and 1024";
  if (name.starts_with('/')) why = "it is absolute";
  if (name.find('\\') != name.npos) why = "it holds a backslash";
  if (name.find('\0') != name.npos) why = "it holds a NUL";
  if (!name.ends_with(".safetensors")) why = "it does not end in .safetensors";
  for (size_t at = 0; at <= name.size();) {
    const size_t slash = std::min(name.find('/', at), name.size());
    if (name.substr(at, slash - at) == "..") why = "it leaves the folder";
    at = slash + 1;
  }
  if (why == nullptr) return {};
  return Fail(Code::kCorruption, "{}: shard name {} is refused: {}", index_file, Quoted(name), why);
}

Result<json::object> ReadHfConfig(const std::string& folder) {
  const std::string path = folder + "/config.json";
  auto text = ReadFile(path, kMaxConfigBytes);
  if (!text && text.error().code() == Code::kNotFound) {
    return Fail(Code::kNotFound,
                "{}: no config.json; give a folder as Hugging Face publishes it, "
                "or a .gguf file",
                folder);
  }
  NIBBLE_TRY(text);
  return ParseJsonObject(*text, path);
}

bool HasShards(const std::string& folder) { return FindShards(folder).has_value(); }

Result<std::unique_ptr<Checkpoint>> OpenHfFolder(const std::string& folder) {
  NIBBLE_ASSIGN(json::object config, ReadHfConfig(folder));
  NIBBLE_ASSIGN(const ShardList list, FindShards(folder));
  std::vector<Shard> shards;
  for (const std::string& name : list.names) {
    NIBBLE_ASSIGN(Shard shard, OpenSafetensors(folder + "/" + name));
    shards.push_back(std::move(shard));
  }
  NIBBLE_ASSIGN(const std::vector<Located> tensors, Merge(folder, list, shards));
  auto checkpoint =
      std::make_unique<HfCheckpoint>(folder, std::move(config), std::move(shards), tensors);
  ReportAbsentTensors(*checkpoint, list.index);
  return checkpoint;
}

}  // namespace nibble::formats
