#include "quantize/copy.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "base/file.h"
#include "base/progress.h"
#include "formats/safetensors_writer.h"
#include "quantize/output_config.h"
#include "quantize/output_folder.h"

namespace nibble::quantize {
namespace {

using formats::Checkpoint;
using formats::TensorData;
using formats::TensorEntry;
using formats::TensorSpec;

constexpr int64_t kPieceBytes = int64_t{4} << 20;

bool HasTokenizer(const std::string& folder) {
  return FileExists(folder + "/tokenizer.json") || FileExists(folder + "/tekken.json") ||
         FileExists(folder + "/tiktoken.model");
}

class Copy {
 public:
  Copy(const Checkpoint& source, const CopyOptions& options, Progress& progress)
      : source_(source), options_(options), progress_(progress) {}

  Result<int64_t> Run(const std::string& folder) {
    std::vector<TensorSpec> specs;
    for (const TensorEntry& entry : source_.tensors())
      specs.push_back({entry.name, entry.dtype, entry.shape});
    NIBBLE_ASSIGN(auto writer,
                  formats::ShardedWriter::Create(folder, specs, options_.max_file_bytes));
    const size_t files = writer.FileNames().size();
    std::atomic<size_t> next = 0;
    options_.pool->ParallelFor(options_.pool->threads(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t thread = begin; thread < end; ++thread) {
        for (size_t file = next++; file < files && !stopped_; file = next++)
          Note(CopyFile(writer.TensorsOf(file), writer));
      }
    });
    NIBBLE_TRY(status_);
    NIBBLE_TRY(writer.Finish());
    NIBBLE_TRY(CopyTexts(source_, folder));
    for (const char* name : {"config.json", "hf_quant_config.json"}) {
      const auto text = source_.ReadText(name);
      if (text) NIBBLE_TRY(WriteFileAtomic(folder + "/" + name, *text));
    }
    if (!options_.tokenizer_json.empty() && !HasTokenizer(folder))
      NIBBLE_TRY(WriteFileAtomic(folder + "/tokenizer.json", options_.tokenizer_json));
    return writer.total_bytes();
  }

 private:
  Status CopyFile(std::span<const TensorSpec> tensors, formats::ShardedWriter& writer) {
    for (const TensorSpec& spec : tensors) NIBBLE_TRY(CopyTensor(spec, writer));
    return {};
  }

  Status CopyTensor(const TensorSpec& spec, formats::ShardedWriter& writer) {
    const TensorEntry* const entry = source_.Find(spec.name);
    if (entry == nullptr)
      return Fail(Code::kNotFound, "{}: no tensor {}", source_.path(), spec.name);
    const int64_t bytes = entry->shape.elements() * DTypeBits(entry->dtype) / 8;
    const int64_t rows = entry->shape.rank() > 0 ? entry->shape[0] : 1;
    if (bytes <= kPieceBytes || rows <= 1) {
      NIBBLE_ASSIGN(const TensorData data, source_.Read(*entry));
      return Append(spec, data, bytes, writer);
    }
    const int64_t row_bytes = bytes / rows;
    const int64_t piece = std::max<int64_t>(1, kPieceBytes / row_bytes);
    for (int64_t begin = 0; begin < rows; begin += piece) {
      const int64_t count = std::min(piece, rows - begin);
      NIBBLE_ASSIGN(const TensorData data, source_.ReadSlice(*entry, begin, count));
      NIBBLE_TRY(Append(spec, data, count * row_bytes, writer));
    }
    source_.Release(*entry);
    return {};
  }

  Status Append(const TensorSpec& spec, const TensorData& data, int64_t bytes,
                formats::ShardedWriter& writer) {
    if (options_.cancelled && options_.cancelled())
      return Fail(Code::kCancelled, "stopped; nothing was written");
    progress_.Advance(bytes);
    return writer.Append(spec.name, {data.view.data, static_cast<size_t>(bytes)});
  }

  void Note(const Status& status) {
    if (status) return;
    stopped_ = true;
    const std::lock_guard lock(mutex_);
    if (status_) status_ = status;
  }

  const Checkpoint& source_;
  const CopyOptions& options_;
  Progress& progress_;
  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;
  Status status_;
};

}  // namespace

Result<int64_t> CopyCheckpoint(const Checkpoint& source, const std::string& destination,
                               const CopyOptions& options) {
  NIBBLE_TRY(CheckDestination(destination, options.replace));
  int64_t bytes = 0;
  for (const TensorEntry& entry : source.tensors()) bytes += entry.stored_bytes;
  Progress progress("writing", bytes, Progress::Unit::kBytes, options.quiet);
  NIBBLE_TRY(WriteBeside(destination, [&](const std::string& folder) -> Status {
    NIBBLE_ASSIGN(bytes, Copy(source, options, progress).Run(folder));
    return {};
  }));
  return bytes;
}

}  // namespace nibble::quantize
