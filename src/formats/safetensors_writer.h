// Writes safetensors files whose tensors are known by name, dtype and shape before their bytes:
// bytes go straight to their place in the file, tensor by tensor in any order, so a checkpoint of
// any size is written with one tensor in memory.
//
// As the reference writes them: tensors by element size (largest first) and name, header padded
// with spaces to a multiple of 8. A file appears under its name when it is complete; until then it
// is "<name>.tmp.<pid>", and a writer that is dropped before Finish removes it. The header's length
// is written last: whenever the process dies, what it leaves is no safetensors file.
//
// Thread-safety: one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tensor/tensor.h"

namespace nibble::formats {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
};

// __metadata__ of each file; Hugging Face loaders expect {"format", "pt"}.
using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

class SafetensorsWriter {
 public:
  // Fails on repeated names, on sizes that overflow and when the disk has no room.
  static Result<SafetensorsWriter> Create(const std::string& path,
                                          std::span<const TensorSpec> specs,
                                          const SafetensorsMetadata& metadata = {});

  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;
  ~SafetensorsWriter();

  // All bytes of one tensor, once.
  Status Write(std::string_view name, std::span<const std::byte> bytes);
  // The next bytes of one tensor, from its first on.
  Status Append(std::string_view name, std::span<const std::byte> bytes);

  size_t unwritten() const { return unwritten_; }  // tensors

  // Brings what is written to the disk. Finish does so too; early, it spreads the waiting.
  Status Sync();

  // Syncs, writes the header's length and renames; an error if a tensor was not written.
  Status Finish();

 private:
  struct Place {
    int64_t offset = 0;  // in the file
    int64_t bytes = 0;
    int64_t written = 0;  // from its first byte on
    bool complete = false;
  };

  SafetensorsWriter() = default;
  void Discard();

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  uint64_t header_bytes_ = 0;  // its length field says so, once the file is complete
  std::unordered_map<std::string, Place> places_;
  size_t unwritten_ = 0;
};

// The tensors of a checkpoint over as many files as max_shard_bytes asks for: model.safetensors, or
// model-00001-of-00003.safetensors and so on with model.safetensors.index.json. Tensors are dealt
// out in the order of `specs`; a tensor larger than the limit gets a file of its own. Files are
// created when their first tensor comes; all become valid, and get their names, in Finish. Threads
// may write at once into different files.
class ShardedWriter {
 public:
  static Result<ShardedWriter> Create(const std::string& folder, std::span<const TensorSpec> specs,
                                      int64_t max_shard_bytes,
                                      SafetensorsMetadata metadata = {{"format", "pt"}});

  Status Write(std::string_view name, std::span<const std::byte> bytes);
  // The next bytes of one tensor, from its first on.
  Status Append(std::string_view name, std::span<const std::byte> bytes);

  // Completes the files and writes the index; an error if a tensor was not written.
  Status Finish();

  // File names below the folder, the index not among them.
  std::vector<std::string> FileNames() const;
  // What file `i` of them holds.
  std::span<const TensorSpec> TensorsOf(size_t i) const { return shards_[i].specs; }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  struct Shard {
    std::string name;
    std::vector<TensorSpec> specs;
    std::optional<SafetensorsWriter> writer;  // from the first tensor to Finish
  };

  // The shard of a tensor that is about to be written, with its file.
  Result<Shard*> Open(std::string_view name);

  std::string folder_;
  SafetensorsMetadata metadata_;
  std::vector<Shard> shards_;
  std::unordered_map<std::string, size_t> shard_of_;
  int64_t total_bytes_ = 0;
};

}  // namespace nibble::formats
