// A checkpoint as published: a Hugging Face folder or a GGUF file, seen through one interface.
//
// Tensors carry Hugging Face names and row-major shapes whatever the source; a GGUF importer
// renames, un-permutes and, for block types that no kernel reads, dequantises on Read. What is
// stored decides a linear's format (ReadLinear looks at dtypes and companion tensors), never a name
// pattern or the config alone. Thread-safety: after Open every method is const and may be called
// from any thread.
#pragma once

#include <boost/json.hpp>

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/name_index.h"
#include "tensor/made_up.h"
#include "tensor/quant_view.h"
#include "tensor/tensor.h"

namespace nibble::formats {

struct TensorEntry {
  std::string name;  // Hugging Face name
  DType dtype;       // as Read gives it
  Shape shape;
  int64_t stored_bytes;   // in the file
  std::string stored_as;  // "BF16", "Q4_1", ...: what the file holds
};

// A tensor's bytes and what keeps them alive (the file's mapping, or a buffer made by an importer).
struct TensorData {
  TensorView view;
  std::shared_ptr<const void> owner;
};

// A linear's weight and what keeps it alive.
struct LinearData {
  QuantView view;
  std::shared_ptr<const void> owner;
};

// How a linear's weight is wanted.
enum class LinearBytes : uint8_t {
  kChecked,    // in memory, values of scales checked: they are read then
  kUnchecked,  // in memory
  kMadeUp,     // as QuantView.made_up where its tensors are made up in rows, else checked
};

// A linear by names, shapes and dtypes alone.
struct LinearShape {
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0;
  int64_t k = 0;
  int64_t bytes = 0;  // of codes, scales and zero points, as ReadLinear views them
};

// How a model's experts lie when they are stacked in one tensor per projection pair, where names
// and shapes cannot tell.
struct ExpertLayout {
  // Gate rows (columns, if transposed) are the even ones and up rows the odd ones; else all gate
  // rows come first.
  bool interleaved = false;
  // Stored (E, K, N) instead of (E, N, K). Not given: decided by shape, an error if both fit.
  // Blocks as gpt-oss stores them lie one way only, whatever this says.
  std::optional<bool> transposed;
};

// The name that a plain text model gives a tensor or module, wrappers' prefixes taken off:
// "model.language_model.layers.0" → "model.layers.0".
std::string PlainName(std::string_view stored);

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // The argument as given: a folder or a file.
  const std::string& path() const { return path_; }
  const boost::json::object& config() const { return config_; }

  // config.json, tokenizer.json, tokenizer_config.json, generation_config.json,
  // chat_template.jinja, hf_quant_config.json, ...: bytes as stored, or as the importer makes them.
  // kNotFound if there is none.
  virtual Result<std::string> ReadText(std::string_view name) const = 0;

  // Sorted by name.
  std::span<const TensorEntry> tensors() const { return tensors_; }
  // By its stored name; else by the name that a plain text model would give it: the prefixes
  // "model.language_model.", "language_model.model.", "language_model." and a missing "model." are
  // seen through. Null if absent, or if two tensors answer to it. The entry has the stored name.
  const TensorEntry* Find(std::string_view name) const;

  // Errors name file, tensor, value and what was expected.
  virtual Result<TensorData> Read(const TensorEntry& entry) const = 0;
  Result<TensorData> Read(std::string_view name) const;  // kNotFound if absent

  // Entries [begin, begin + count) of its first axis, as a tensor: one expert of a stack. A
  // checkpoint that makes its tensors makes that part alone.
  virtual Result<TensorData> ReadSlice(const TensorEntry& entry, int64_t begin,
                                       int64_t count) const;

  // How the tensor's bytes are made up, null where they are stored. Lives as long as this.
  virtual const MadeUpBytes* MadeUp(const TensorEntry&) const { return nullptr; }

  // A hint that a tensor's bytes are not needed soon: their memory may go until they are read
  // again.
  virtual void Release(const TensorEntry&) const {}

  // A hint that whatever has been read so far is kept elsewhere by now: nothing of the files needs
  // to stay in the process's memory nor, with page_cache, in the system's. May be called while
  // others read.
  virtual void DropBehind([[maybe_unused]] bool page_cache) const {}

  // A float tensor of one element, [] or [1]. Its value is not judged.
  Result<float> ReadScalar(const TensorEntry& entry) const;

  // The linear whose tensors start with `prefix` ("model.layers.0.mlp.up_proj"): classified by what
  // is stored. n, k: the shape that the architecture expects; 0 accepts any. Names, shapes and
  // dtypes are checked here.
  Result<LinearData> ReadLinear(std::string_view prefix, int64_t n, int64_t k,
                                LinearBytes bytes = LinearBytes::kChecked) const;

  // That linear from names and dtypes alone, or why it is none.
  Result<LinearShape> DescribeLinear(std::string_view prefix) const;
  Result<WeightFormat> LinearFormat(std::string_view prefix) const;

  // Stored names of all tensors that ReadLinear(prefix) uses (weight, scales, input scales, ...):
  // for "nothing left over" checks. Empty where LinearFormat fails.
  std::vector<std::string> LinearTensors(std::string_view prefix) const;

  // One projection, (n, k), of one expert of a mixture, whatever way the experts are stored.
  // experts: the module that holds them ("model.layers.3.mlp.experts"); projection: "gate_proj",
  // "up_proj" or "down_proj". Layouts seen through:
  //   per expert        {experts}.{e}.{projection}.weight, or w1, w3, w2: any format of ReadLinear
  //   stacked, rows     {experts}.gate_up_proj (E, 2F, D), {experts}.down_proj (E, D, F)
  //   stacked, columns  the same transposed, (E, D, 2F) and (E, F, D); also with nibbles paired
  //                     along the rows, U8 (E, D/2, 2F) with _weight_scale (E, D/16, 2F)
  //   blocks            {experts}.gate_up_proj_blocks (E, 2F, D/32, 16) with _scales (E, 2F, D/32)
  // Stacked tensors may be wide, FP8, NVFP4 or MXFP4. Rows that lie together are viewed in place,
  // others gathered into a buffer.
  Result<LinearData> ReadExpert(std::string_view experts, int64_t expert,
                                std::string_view projection, int64_t n, int64_t k,
                                const ExpertLayout& layout,
                                LinearBytes bytes = LinearBytes::kChecked) const;

  // From names, shapes and dtypes alone.
  Result<LinearShape> DescribeExpert(std::string_view experts, int64_t expert,
                                     std::string_view projection, int64_t n, int64_t k,
                                     const ExpertLayout& layout) const;
  Result<WeightFormat> ExpertFormat(std::string_view experts, int64_t expert,
                                    std::string_view projection, int64_t n, int64_t k,
                                    const ExpertLayout& layout) const;

  // The module that the projection is, or would be where experts are stacked:
  // "model.layers.3.mlp.experts.5.up_proj".
  std::string ExpertModule(std::string_view experts, int64_t expert,
                           std::string_view projection) const;

  // Stored names of all tensors that ReadExpert and ReadExpertBias may use; stacked ones hold other
  // experts as well. Empty where there are none.
  std::vector<std::string> ExpertTensors(std::string_view experts, int64_t expert,
                                         std::string_view projection) const;

  // The n floats of its bias, empty if none is stored: {experts}.{e}.{projection}.bias or
  // {experts}.gate_up_proj_bias (E, 2F), {experts}.down_proj_bias (E, D).
  Result<std::vector<float>> ReadExpertBias(std::string_view experts, int64_t expert,
                                            std::string_view projection, int64_t n,
                                            const ExpertLayout& layout) const;

 protected:
  // Takes the tensors, sorted by name, and indexes their names and those they also answer to.
  // Without it Find knows stored names alone, and searches.
  void SetTensors(std::vector<TensorEntry> sorted);

  std::string path_;
  boost::json::object config_;
  std::vector<TensorEntry> tensors_;  // sorted by name

 private:
  // Position of the tensor whose name, its wrapper taken off, is `plain`.
  size_t FindAlias(std::string_view plain) const;
  // An error's message, with file and tensor in front.
  Status InTensor(const TensorEntry& entry, Status status) const;
  // Warns, once per checkpoint, of a multiplier that looks like a divisor.
  void WarnOfGlobalScale(const TensorEntry& entry, const QuantView& view) const;

  NameIndex names_;              // stored names
  NameIndex aliases_;            // plain names, where they differ from the stored ones
  std::vector<bool> ambiguous_;  // parallel to tensors_: shares its plain name with another
  mutable std::atomic_flag warned_of_global_scale_;  // once per checkpoint
};

struct OpenOptions {
  // A cross-check, "" for none: an error when the stored tensors are of another format. Names:
  // KnownQuantizationNames() in formats/stored_formats.h.
  std::string quantization;
};

// path: a folder with config.json, or a .gguf file. Names, shapes and dtypes of every file are
// checked, and the stored formats against what config and options say (formats/stored_formats.h);
// no tensor data is read.
Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path,
                                                   const OpenOptions& options = {});

// Token ids that end an answer: generation_config.json's eos_token_id (int or list), else
// config.json's.
std::vector<int32_t> StopTokenIds(const Checkpoint& checkpoint);

}  // namespace nibble::formats
