#include "formats/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/file.h"
#include "formats/json_file.h"
#include "formats/safetensors.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

tl::unexpected<Error> FailErrno(std::string_view action, const std::string& path) {
  return Fail(Code::kUnavailable, "{}: cannot {}: {}", path, action, std::strerror(errno));
}

Status WriteAt(int fd, std::span<const std::byte> bytes, int64_t offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return FailErrno("write", path);
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += put;
  }
  return {};
}

Result<int64_t> SpecBytes(const TensorSpec& spec, const std::string& path) {
  int64_t bits = DTypeBits(spec.dtype);
  for (const int64_t dim : spec.shape.dims()) {
    if (dim < 0 || __builtin_mul_overflow(bits, dim, &bits)) {
      return Fail(Code::kInvalidArgument, "{}: tensor {}: shape {} is negative or overflows", path,
                  Quoted(spec.name), spec.shape.ToString());
    }
  }
  if (bits % 8 != 0) {
    return Fail(Code::kInvalidArgument, "{}: tensor {}: {} {} is {} bits, not whole bytes", path,
                Quoted(spec.name), DTypeName(spec.dtype), spec.shape.ToString(), bits);
  }
  return bits / 8;
}

json::object HeaderEntry(const TensorSpec& spec, int64_t begin, int64_t end) {
  json::array shape;
  for (const int64_t dim : spec.shape.dims()) shape.push_back(dim);
  return {{"dtype", DTypeName(spec.dtype)}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

// A length field of zero, which no reader takes, and the padded header.
std::string UnfinishedHead(const json::object& header) {
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return std::string(sizeof(uint64_t), '\0') + text;
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

Result<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                    std::span<const TensorSpec> specs,
                                                    const SafetensorsMetadata& metadata) {
  std::vector<TensorSpec> sorted(specs.begin(), specs.end());
  std::sort(sorted.begin(), sorted.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int bits_a = DTypeBits(a.dtype);
    const int bits_b = DTypeBits(b.dtype);
    return bits_a != bits_b ? bits_a > bits_b : a.name < b.name;
  });

  SafetensorsWriter writer;
  writer.path_ = path;
  json::object header;
  if (!metadata.empty()) {
    json::object entries;
    for (const auto& [key, value] : metadata) entries[key] = value;
    header["__metadata__"] = std::move(entries);
  }
  int64_t end = 0;
  for (const TensorSpec& spec : sorted) {
    const int64_t begin = end;
    NIBBLE_ASSIGN(const int64_t bytes, SpecBytes(spec, path));
    if (__builtin_add_overflow(begin, bytes, &end)) {
      return Fail(Code::kInvalidArgument, "{}: the tensors overflow 64 bits", path);
    }
    if (spec.name == "__metadata__" ||
        !writer.places_.emplace(spec.name, Place{.offset = begin, .bytes = bytes}).second) {
      return Fail(Code::kInvalidArgument, "{}: tensor {} is reserved or listed twice", path,
                  Quoted(spec.name));
    }
    header[spec.name] = HeaderEntry(spec, begin, end);
  }
  const std::string head = UnfinishedHead(header);
  writer.header_bytes_ = head.size() - sizeof(uint64_t);
  if (head.size() - 8 > kMaxSafetensorsHeader) {
    return Fail(Code::kTooLarge,
                "{}: a header of {} bytes, at most {} are allowed; use more shards", path,
                head.size() - 8, kMaxSafetensorsHeader);
  }
  for (auto& [name, place] : writer.places_) place.offset += static_cast<int64_t>(head.size());
  writer.unwritten_ = writer.places_.size();

  writer.temporary_ = fmt::format("{}.tmp.{}", path, ::getpid());
  writer.fd_ = ::open(writer.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) return FailErrno("create", writer.temporary_);
  // Room is taken now, where the file system can, so that a full disk shows before hours of work.
  const off_t size = static_cast<off_t>(head.size()) + end;
  if (::fallocate(writer.fd_, 0, 0, size) != 0) {
    if (errno == ENOSPC) {
      return Fail(Code::kResourceExhausted, "{}: no room on the disk for {} bytes", path, size);
    }
    if (::ftruncate(writer.fd_, size) != 0) return FailErrno("size", writer.temporary_);
  }
  NIBBLE_TRY(WriteAt(writer.fd_, AsBytes(head), 0, writer.temporary_));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      header_bytes_(other.header_bytes_),
      places_(std::move(other.places_)),
      unwritten_(other.unwritten_) {}

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(fd_, other.fd_);
  std::swap(header_bytes_, other.header_bytes_);
  std::swap(places_, other.places_);
  std::swap(unwritten_, other.unwritten_);
  return *this;
}

SafetensorsWriter::~SafetensorsWriter() { Discard(); }

void SafetensorsWriter::Discard() {
  if (fd_ < 0) return;
  ::close(std::exchange(fd_, -1));
  ::unlink(temporary_.c_str());
}

Status SafetensorsWriter::Write(std::string_view name, std::span<const std::byte> bytes) {
  const auto at = places_.find(std::string(name));
  if (at != places_.end() && static_cast<int64_t>(bytes.size()) != at->second.bytes) {
    return Fail(Code::kInvalidArgument, "{}: tensor {}: {} bytes given, its shape needs {}", path_,
                Quoted(name), bytes.size(), at->second.bytes);
  }
  return Append(name, bytes);
}

Status SafetensorsWriter::Append(std::string_view name, std::span<const std::byte> bytes) {
  const auto at = places_.find(std::string(name));
  if (at == places_.end()) {
    return Fail(Code::kInvalidArgument, "{}: tensor {} was not announced", path_, Quoted(name));
  }
  Place& place = at->second;
  const auto size = static_cast<int64_t>(bytes.size());
  if (place.complete) {
    return Fail(Code::kInvalidArgument, "{}: tensor {} is written twice", path_, Quoted(name));
  }
  if (size > place.bytes - place.written) {
    return Fail(Code::kInvalidArgument, "{}: tensor {}: {} bytes given, its shape needs {}", path_,
                Quoted(name), place.written + size, place.bytes);
  }
  NIBBLE_TRY(WriteAt(fd_, bytes, place.offset + place.written, temporary_));
  place.written += size;
  place.complete = place.written == place.bytes;
  if (place.complete) --unwritten_;
  return {};
}

Status SafetensorsWriter::Sync() {
  if (::fsync(fd_) != 0) return FailErrno("sync", temporary_);
  return {};
}

Status SafetensorsWriter::Finish() {
  if (unwritten_ != 0) {
    const auto missing = std::find_if(places_.begin(), places_.end(),
                                      [](const auto& place) { return !place.second.complete; });
    return Fail(Code::kInvalidArgument, "{}: {} tensors were not written, {} among them", path_,
                unwritten_, Quoted(missing->first));
  }
  NIBBLE_TRY(Sync());
  NIBBLE_TRY(WriteAt(fd_, std::as_bytes(std::span(&header_bytes_, 1)), 0, temporary_));
  NIBBLE_TRY(Sync());
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return FailErrno("rename to", path_);
  ::close(std::exchange(fd_, -1));
  return {};
}

Result<ShardedWriter> ShardedWriter::Create(const std::string& folder,
                                            std::span<const TensorSpec> specs,
                                            int64_t max_shard_bytes, SafetensorsMetadata metadata) {
  if (specs.empty()) return Fail(Code::kInvalidArgument, "{}: no tensors to write", folder);
  ShardedWriter writer;
  writer.folder_ = folder;
  writer.metadata_ = std::move(metadata);
  int64_t shard_bytes = 0;
  for (const TensorSpec& spec : specs) {
    NIBBLE_ASSIGN(const int64_t bytes, SpecBytes(spec, folder));
    if (writer.shards_.empty() || shard_bytes > max_shard_bytes - bytes) {
      writer.shards_.emplace_back();
      shard_bytes = 0;
    }
    Shard& shard = writer.shards_.back();
    if (!writer.shard_of_.emplace(spec.name, writer.shards_.size() - 1).second) {
      return Fail(Code::kInvalidArgument, "{}: tensor {} is listed twice", folder,
                  Quoted(spec.name));
    }
    shard.specs.push_back(spec);
    shard_bytes += bytes;
    writer.total_bytes_ += bytes;
  }
  for (size_t i = 0; i < writer.shards_.size(); ++i) {
    writer.shards_[i].name =
        writer.shards_.size() == 1
            ? "model.safetensors"
            : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, writer.shards_.size());
  }
  return writer;
}

Result<ShardedWriter::Shard*> ShardedWriter::Open(std::string_view name) {
  const auto at = shard_of_.find(std::string(name));
  if (at == shard_of_.end()) {
    return Fail(Code::kInvalidArgument, "{}: tensor {} was not announced", folder_, Quoted(name));
  }
  Shard& shard = shards_[at->second];
  if (shard.writer && shard.writer->unwritten() == 0) {
    return Fail(Code::kInvalidArgument, "{}: tensor {} is written twice", folder_, Quoted(name));
  }
  if (!shard.writer) {
    NIBBLE_ASSIGN(shard.writer,
                  SafetensorsWriter::Create(folder_ + "/" + shard.name, shard.specs, metadata_));
  }
  return &shard;
}

Status ShardedWriter::Write(std::string_view name, std::span<const std::byte> bytes) {
  NIBBLE_ASSIGN(Shard* const shard, Open(name));
  NIBBLE_TRY(shard->writer->Write(name, bytes));
  return shard->writer->unwritten() == 0 ? shard->writer->Sync() : Status();
}

Status ShardedWriter::Append(std::string_view name, std::span<const std::byte> bytes) {
  NIBBLE_ASSIGN(Shard* const shard, Open(name));
  NIBBLE_TRY(shard->writer->Append(name, bytes));
  return shard->writer->unwritten() == 0 ? shard->writer->Sync() : Status();
}

Status ShardedWriter::Finish() {
  json::object weight_map;
  for (Shard& shard : shards_) {
    const size_t unwritten = shard.writer ? shard.writer->unwritten() : shard.specs.size();
    if (unwritten != 0) {
      return Fail(Code::kInvalidArgument, "{}/{}: {} of {} tensors were not written", folder_,
                  shard.name, unwritten, shard.specs.size());
    }
    for (const TensorSpec& spec : shard.specs) weight_map[spec.name] = shard.name;
  }
  for (Shard& shard : shards_) {
    NIBBLE_TRY(shard.writer->Finish());
    shard.writer.reset();
  }
  if (shards_.size() <= 1) return {};
  const json::object index = {{"metadata", {{"total_size", total_bytes_}}},
                              {"weight_map", std::move(weight_map)}};
  return WriteFileAtomic(folder_ + "/model.safetensors.index.json", json::serialize(index) + "\n");
}

std::vector<std::string> ShardedWriter::FileNames() const {
  std::vector<std::string> names;
  for (const Shard& shard : shards_) names.push_back(shard.name);
  return names;
}

}  // namespace nibble::formats
