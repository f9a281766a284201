// What the config files say about quantisation: config.json's quantization_config (also below
// text_config, or named compression_config) merged with hf_quant_config.json.
//
// Published configs are incomplete and sometimes wrong, so nothing here decides how a tensor is
// read; it serves cross-checks, block sizes that shapes leave open, and the KV cache's format.
// Damaged lists do no harm. Thread-safety: plain values. Sources: ModelOpt, compressed-tensors and
// transformers' FP8 configs.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

// One entry of an ignore or target list: an exact module name, a wildcard (*, ?, [...]) that may
// also match within dots, or "re:" and a regular expression anchored at the start.
class ModulePattern {
 public:
  explicit ModulePattern(std::string text);
  // A pattern that is damaged or too costly to match matches nothing.
  bool Matches(std::string_view module) const;

 private:
  std::string text_;
  std::string children_;               // wildcards for the modules below it, or ""
  std::shared_ptr<const void> regex_;  // compiled, for "re:"
};

struct QuantizationConfig {
  struct Named {
    std::string kind;     // "nvfp4", "int", ...: as stored_formats.h names them
    std::string spelled;  // as the file spells it: "W4A16_NVFP4"
    std::string file;     // "config.json"
  };
  std::vector<Named> formats;          // one per kind
  std::vector<std::string> unknown;    // spellings of no known kind
  std::vector<ModulePattern> ignored;  // modules that stay wide
  std::vector<ModulePattern> only;     // if not empty, the modules that are quantised
  std::string kv_cache;                // "fp8", "nvfp4", ... in lower case; "" for none

  // Whether the module ("model.layers.0.mlp.up_proj") should be quantised, by these files.
  bool NamesModule(std::string_view module) const;
};

// config.json's object about quantisation, wherever it is; null if nowhere.
const boost::json::object* QuantizationObject(const boost::json::object& config);

// hf_quant: hf_quant_config.json, null where there is none.
QuantizationConfig ParseQuantizationConfig(const boost::json::object& config,
                                           const boost::json::object* hf_quant);

// Of an open checkpoint. Fails if hf_quant_config.json is there and is not a JSON object.
Result<QuantizationConfig> ReadQuantizationConfig(const Checkpoint& checkpoint);

// Group sizes along K that config.json names for integer weights; of several groups of modules
// each.
std::vector<int64_t> ConfiguredGroupSizes(const boost::json::object& config);

// How GPTQ weights' zero points are to be read, which tensors cannot show.
struct GptqZeros {
  bool minus_one = true;   // stored less 1: checkpoint_format "gptq", the default, not "gptq_v2"
  bool symmetric = false;  // says the config: all are in the middle
};
GptqZeros ConfiguredGptqZeros(const boost::json::object& config);

// (rows, columns) of an FP8 scale block as config.json gives it; (0, 0) if it does not.
std::pair<int64_t, int64_t> ConfiguredFp8Block(const boost::json::object& config);

}  // namespace nibble::formats
