// Any bytes as a safetensors file: parsed, then every tensor and every linear that its names spell
// is read to the last element.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "formats/checkpoint.h"
#include "formats/kv_scales.h"
#include "formats/safetensors.h"
#include "formats/stored_formats.h"

namespace nibble::formats {
namespace {

// One file in memory as a Checkpoint without any text file.
class MemoryCheckpoint : public Checkpoint {
 public:
  MemoryCheckpoint(std::span<const std::byte> file, const SafetensorsHeader& header) : file_(file) {
    path_ = "fuzz";
    std::vector<TensorEntry> entries;
    for (const SafetensorsEntry& entry : header.tensors) {
      entries.push_back({entry.name, entry.dtype, entry.shape, entry.end - entry.begin, "x"});
      offsets_[entry.name] = entry.begin;
    }
    std::sort(entries.begin(), entries.end(),
              [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
    SetTensors(std::move(entries));
  }

  Result<std::string> ReadText(std::string_view) const override {
    return Fail(Code::kNotFound, "none");
  }
  Result<TensorData> Read(const TensorEntry& entry) const override {
    TensorData data;
    data.view = {file_.data() + offsets_.at(entry.name), entry.dtype, entry.shape};
    return data;
  }

 private:
  std::span<const std::byte> file_;
  std::unordered_map<std::string, int64_t> offsets_;
};

// Every row of a linear, whatever its format.
float Sum(const QuantView& view) {
  std::vector<float> row(static_cast<size_t>(view.k));
  float sum = 0;
  for (int64_t i = 0; i < view.n; ++i) {
    DequantizeRow(view, i, row.data());
    sum += row.front() + row.back();
  }
  if (view.column_order != nullptr) sum += static_cast<float>(view.column_order[view.k - 1]);
  if (view.input_multiplier != nullptr) sum += view.input_multiplier[view.k - 1];
  return sum;
}

// The stack that `entry` may be part of, in all shapes that its own may stand for.
float ReadStack(const Checkpoint& checkpoint, const TensorEntry& entry, std::string_view module) {
  const int64_t a = entry.shape[1];
  const int64_t b = entry.shape.rank() == 4 ? entry.shape[2] * entry.shape[3] : entry.shape[2];
  float sum = 0;
  for (const auto& [n, k] : {std::pair(a, b),
                             {b, a},
                             {a, 2 * b},
                             {b, 2 * a},
                             {a / 2, b},
                             {b / 2, a},
                             {a / 2, 2 * b},
                             {b / 2, 2 * a}}) {
    for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
      for (const bool interleaved : {false, true}) {
        const ExpertLayout layout{.interleaved = interleaved, .transposed = {}};
        const int64_t last = entry.shape[0] - 1;
        const auto expert = checkpoint.ReadExpert(module, last, projection, n, k, layout);
        if (expert) sum += Sum(expert->view);
        const auto bias = checkpoint.ReadExpertBias(module, last, projection, n, layout);
        if (bias && !bias->empty()) sum += bias->back();
      }
    }
  }
  return sum;
}

void ReadEverything(const Checkpoint& checkpoint) {
  (void)CheckStoredFormats(checkpoint, "nvfp4");
  volatile float sink = 0;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    const auto data = checkpoint.Read(entry);
    const int64_t bytes = data->view.bytes();
    if (bytes > 0) sink = sink + std::to_integer<int>(data->view.data[bytes - 1]);
    const std::string prefix = entry.name.substr(0, entry.name.rfind('.'));
    (void)checkpoint.LinearTensors(prefix);
    (void)ReadKvScales(checkpoint, prefix);
    const auto linear = checkpoint.ReadLinear(prefix, 0, 0);
    if (linear) sink = sink + Sum(linear->view);
    const bool may_be_stack = entry.shape.rank() == 3 || entry.shape.rank() == 4;
    if (may_be_stack && entry.shape.elements() > 0) {
      sink = sink + ReadStack(checkpoint, entry, prefix);
      (void)checkpoint.ExpertTensors(prefix, 0, "up_proj");
    }
  }
}

}  // namespace
}  // namespace nibble::formats

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::formats;
  nibble::SetLogLevel(nibble::LogLevel::kOff);
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = ParseSafetensors(file, "fuzz");
  if (header) ReadEverything(MemoryCheckpoint(file, *header));
  return 0;
}
