// Checkpoints of goldens, made from their descriptions: weights.json names each tensor's dtype,
// shape and rule, tools/golden_weights.py makes the same values from it for the original.
#pragma once

#include <boost/json.hpp>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "models/dummy_values.h"
#include "testing/tensor_folder.h"

namespace nibble::testing {

// rule: [dtype, shape, kind, parameters...].
inline models::DummyValues ValuesOfRule(const boost::json::array& rule, DType dtype,
                                        uint64_t stream) {
  using Kind = models::DummyValues::Kind;
  models::DummyValues values{.dtype = dtype, .stream = stream};
  const boost::json::string& kind = rule[2].as_string();
  if (kind == "floats") {
    values.kind = Kind::kFloats;
    values.centre = rule[3].to_number<float>();
    values.spread = rule[4].to_number<float>();
  } else if (kind == "bytes") {
    values.kind = Kind::kBytes;
    values.base = rule[3].to_number<uint8_t>();
    values.mask = rule[4].to_number<uint8_t>();
  } else {
    NIBBLE_CHECK(kind == "bits" || kind == "e4m3", "golden weights of kind {}",
                 std::string_view(kind));
    values.kind = kind == "bits" ? Kind::kBits : Kind::kE4m3Codes;
  }
  return values;
}

// The tensors that a golden's weights.json describes.
inline StoredTensors GoldenTensors(const std::filesystem::path& golden) {
  const boost::json::value description =
      boost::json::parse(ReadFile((golden / "weights.json").string()).value());
  const auto seed = description.at("seed").to_number<uint64_t>();
  StoredTensors tensors;
  for (const auto& [name, value] : description.at("tensors").as_object()) {
    const boost::json::array& rule = value.as_array();
    const DType dtype = ParseDType(std::string_view(rule[0].as_string())).value();
    Shape shape;
    for (const boost::json::value& extent : rule[1].as_array()) shape.Append(extent.as_int64());
    std::vector<uint8_t> bytes(static_cast<size_t>(shape.elements() * DTypeBits(dtype) / 8));
    models::FillDummy(ValuesOfRule(rule, dtype, models::DummyStream(seed, name)), 0,
                      std::as_writable_bytes(std::span(bytes)), nullptr);
    tensors.emplace(name, StoredTensor{dtype, shape, std::move(bytes)});
  }
  return tensors;
}

// A golden's config.json and weights as a checkpoint in `folder`.
inline void WriteGoldenCheckpoint(const std::filesystem::path& golden, const TensorFolder& folder) {
  folder.Write(GoldenTensors(golden), ReadFile((golden / "config.json").string()).value());
}

}  // namespace nibble::testing
