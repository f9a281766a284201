// How each module's weight would be stored, going by the config files alone: for checkpoints that
// have a config and no tensors. Where tensors exist they decide, and nobody asks here.
//
// Besides what the files name, what their writers do by themselves is applied: embeddings, routers
// and their like always stay wide, lm_head unless the file's rules reach it, MTP modules of
// ModelOpt's exports, and gpt-oss quantises its experts alone. Thread-safety: immutable after
// Parse. Sources: ModelOpt's, compressed-tensors' and transformers' exporters.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/quantization_config.h"

namespace nibble::formats {

// Which producer's names and layouts the tensors have (linear_parts.h lists them).
enum class WeightLayout : uint8_t {
  kModelOpt,
  kCompressedTensors,
  kTransformers,  // FP8 with weight_scale_inv; gpt-oss' stacked MXFP4 blocks
  kAwq,
  kGptq
};

struct WeightScheme {
  std::string kind;  // "nvfp4", "mxfp4", "fp8", "mxfp8", "int"; "": 16 bits
  WeightLayout layout = WeightLayout::kModelOpt;
  int64_t bits = 4;        // of "int"
  int64_t group = 0;       // columns per scale of "int", 0: one scale per row
  int64_t block_rows = 0;  // of an "fp8" scale; 0: one scale per tensor, unless per_row
  int64_t block_columns = 0;
  bool per_row = false;      // "fp8": one scale per row
  bool input_scale = false;  // a static activation scale is stored

  bool wide() const { return kind.empty(); }
};

class WeightSchemes {
 public:
  // hf_quant: hf_quant_config.json, null where there is none.
  static WeightSchemes Parse(const boost::json::object& config,
                             const boost::json::object* hf_quant);

  // module: "model.layers.0.mlp.up_proj".
  WeightScheme Of(std::string_view module) const;

  const QuantizationConfig& config() const { return config_; }

 private:
  void Add(const boost::json::object& object);
  void AddModelOptLayers(const boost::json::object& layers);
  void AddGroups(const boost::json::object& groups, std::string_view format);
  void AddMethod(std::string_view method, const boost::json::object& object);

  QuantizationConfig config_;
  std::unordered_map<std::string, WeightScheme> exact_;           // module without wildcards
  std::vector<std::pair<ModulePattern, WeightScheme>> patterns_;  // the first that matches counts
  WeightScheme others_;                                           // of modules that none names
};

// Modules that no exporter quantises: embeddings, routers, gates of one row, convolutions and the
// rows that set decay rates.
bool IsAlwaysWide(std::string_view module);

}  // namespace nibble::formats
