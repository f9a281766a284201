// A Hugging Face folder of hand-made tensors, for tests of what reads them.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/hf_checkpoint.h"
#include "formats/safetensors_writer.h"
#include "testing/temp_folder.h"

namespace nibble {

struct StoredTensor {
  DType dtype;
  Shape shape;
  std::vector<uint8_t> bytes;  // padded with zeros
};
using StoredTensors = std::map<std::string, StoredTensor>;

template <typename T>
std::vector<uint8_t> BytesOf(const std::vector<T>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::vector<uint8_t> FloatBytes(std::initializer_list<float> values) {
  return BytesOf(std::vector<float>(values));
}

class TensorFolder {
 public:
  const std::string& path() const { return folder_.path(); }

  // Writes config.json and model.safetensors, over what is there.
  void Write(const StoredTensors& tensors, const std::string& config = "{}") const {
    folder_.Write("config.json", config);
    std::vector<formats::TensorSpec> specs;
    for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype, tensor.shape});
    auto writer = formats::SafetensorsWriter::Create(path() + "/model.safetensors", specs);
    ASSERT_TRUE(writer) << writer.error().message();
    for (const auto& [name, tensor] : tensors) {
      std::vector<uint8_t> bytes = tensor.bytes;
      bytes.resize(static_cast<size_t>(tensor.shape.elements() * DTypeBits(tensor.dtype) / 8));
      ASSERT_TRUE(writer->Write(name, std::as_bytes(std::span(bytes))));
    }
    ASSERT_TRUE(writer->Finish());
  }

  // The same, opened without cross-checks of the config.
  std::unique_ptr<formats::Checkpoint> Open(const StoredTensors& tensors,
                                            const std::string& config = "{}") const {
    Write(tensors, config);
    auto opened = formats::OpenHfFolder(path());
    EXPECT_TRUE(opened) << opened.error().message();
    return opened ? std::move(*opened) : nullptr;
  }

  // The message without this folder's path in front.
  std::string Shorten(const std::string& message) const {
    return message.starts_with(path() + ": ") ? message.substr(path().size() + 2) : message;
  }

 private:
  TempFolder folder_;
};

// All rows, (N, K).
inline std::vector<float> DequantizeAll(const QuantView& view) {
  std::vector<float> values(static_cast<size_t>(view.n * view.k));
  for (int64_t row = 0; row < view.n; ++row) DequantizeRow(view, row, values.data() + row * view.k);
  return values;
}

}  // namespace nibble
