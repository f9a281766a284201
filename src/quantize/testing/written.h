// What a written checkpoint holds. For tests of the quantizer.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "tensor/quant_view.h"

namespace nibble::quantize {

inline std::vector<float> Rows(const QuantView& view) {  // (N, K)
  std::vector<float> rows(view.n * view.k);
  for (int64_t row = 0; row < view.n; ++row) DequantizeRow(view, row, &rows[row * view.k]);
  return rows;
}

inline std::vector<uint8_t> BytesOf(const formats::Checkpoint& checkpoint,
                                    const std::string& name) {
  const auto data = checkpoint.Read(name);
  EXPECT_TRUE(data) << name;
  if (!data) return {};
  const auto* bytes = reinterpret_cast<const uint8_t*>(data->view.data);
  return {bytes, bytes + data->view.bytes()};
}

// Where the offsets of a file's entries start.
inline const std::byte* DataOf(const formats::SafetensorsFile& file) {
  const auto bytes = file.mapping.bytes();
  return bytes.data() + (bytes.size() - file.header.tensors.back().end);
}

}  // namespace nibble::quantize
