// A checkpoint in memory, for tests of the quantizer: seeded random BF16 tensors, and what a test
// puts beside them.
#pragma once

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "numerics/bf16.h"

namespace nibble::quantize {

class MemoryCheckpoint : public formats::Checkpoint {
 public:
  explicit MemoryCheckpoint(const std::map<std::string, Shape>& shapes,
                            std::string_view model_type = "llama") {
    path_ = "memory";
    config_ = {{"model_type", model_type}, {"quantization_config", {{"quant_method", "fp8"}}}};
    std::mt19937 random(3);
    for (const auto& [name, shape] : shapes) {
      // Sizes differ, so that siblings do not share a largest magnitude by chance.
      std::normal_distribution<float> normal(0.0f, 0.02f * static_cast<float>(1 + stored_.size()));
      std::vector<uint16_t> values(shape.elements());
      for (uint16_t& value : values) value = Bf16FromFloat(normal(random));
      Add(name, DType::kBF16, shape, values);
    }
  }

  // Adds or replaces a tensor.
  template <typename T>
  void Add(const std::string& name, DType dtype, const Shape& shape, const std::vector<T>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    stored_[name] = {dtype, shape, std::move(bytes)};
    std::vector<formats::TensorEntry> entries;
    for (const auto& [stored_name, tensor] : stored_) {
      entries.push_back({stored_name, tensor.dtype, tensor.shape,
                         static_cast<int64_t>(tensor.bytes.size()),
                         std::string(DTypeName(tensor.dtype))});
    }
    SetTensors(std::move(entries));
  }

  Result<std::string> ReadText(std::string_view name) const override {
    if (name == "tokenizer.json") return "{\"version\": \"1.0\"}";
    return Fail(Code::kNotFound, "{}", name);
  }

  using Checkpoint::Read;
  Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
    if (entry.name == unreadable) return Fail(Code::kUnavailable, "{}: disk on fire", entry.name);
    const Stored& tensor = stored_.at(entry.name);
    return formats::TensorData{{tensor.bytes.data(), entry.dtype, entry.shape}, nullptr};
  }

  // Of a BF16 tensor.
  uint16_t* values(const std::string& name) {
    return reinterpret_cast<uint16_t*>(stored_.at(name).bytes.data());
  }
  float value(const std::string& name, int64_t index) { return Bf16ToFloat(values(name)[index]); }

  std::string unreadable;

 private:
  struct Stored {
    DType dtype = DType::kBF16;
    Shape shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Stored> stored_;
};

}  // namespace nibble::quantize
