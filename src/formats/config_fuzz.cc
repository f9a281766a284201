// Any text as config.json, hf_quant_config.json and generation_config.json of a folder.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "formats/hf_checkpoint.h"
#include "formats/json_file.h"
#include "formats/quantization_config.h"
#include "formats/stored_formats.h"

namespace nibble::formats {
namespace {

// A folder of text files alone, all of which hold the same text.
class TextCheckpoint : public Checkpoint {
 public:
  TextCheckpoint(std::string_view text, boost::json::object config) : text_(text) {
    path_ = "fuzz";
    config_ = std::move(config);
    std::vector<TensorEntry> entries;
    for (const char* name : {"lm_head.weight", "model.layers.0.mlp.gate_proj.weight",
                             "model.language_model.layers.10.self_attn.q_proj.weight"}) {
      entries.push_back({name, DType::kBF16, {4, 32}, 256, "BF16"});
    }
    SetTensors(std::move(entries));
  }
  Result<std::string> ReadText(std::string_view) const override { return std::string(text_); }
  Result<TensorData> Read(const TensorEntry&) const override {
    return Fail(Code::kNotFound, "none");
  }

 private:
  std::string_view text_;
};

void UseIndex(const boost::json::object& index) {
  const auto* map = index.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return;
  for (const auto& member : map->get_object()) {
    if (member.value().is_string()) {
      (void)CheckShardName(std::string(member.value().get_string()), "fuzz");
    }
  }
}

}  // namespace
}  // namespace nibble::formats

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  using namespace nibble::formats;
  SetLogLevel(LogLevel::kOff);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto config = ParseJsonObject(text, "fuzz");
  if (!config) return 0;
  UseIndex(*config);
  (void)ConfiguredFp8Block(*config);
  const TextCheckpoint checkpoint(text, std::move(*config));
  (void)CheckStoredFormats(checkpoint, "");
  (void)StopTokenIds(checkpoint);
  return 0;
}
