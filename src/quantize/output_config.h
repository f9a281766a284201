// The text files of a quantised checkpoint: config.json with its quantization_config,
// hf_quant_config.json where the layout has one, and the tokenizer's files as they are.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "quantize/encoder.h"

namespace nibble::quantize {

// How one linear of the output is stored.
struct Scheme {
  Format format = Format::kNvfp4;  // kBf16: stored in another format that the source had
  bool activations = false;        // NVFP4: with an input scale
  bool smoothed = false;           // NVFP4: with pre_quant_scale
  int64_t group = 0;               // INT4: columns per scale
  std::string stored;              // kBf16: "fp8", ...
  auto operator<=>(const Scheme&) const = default;
};

struct OutputModule {
  std::string module;
  Scheme scheme;
};

// modules: every linear that is quantised in the output; none: the output is not quantised.
// kept: modules that stay in higher precision, for the ignore lists.
Status WriteConfigFiles(const formats::Checkpoint& source, const std::string& folder, Layout layout,
                        const std::vector<OutputModule>& modules,
                        const std::vector<std::string>& kept);

// The tokenizer's files and the like, as they are.
Status CopyTexts(const formats::Checkpoint& source, const std::string& folder);

}  // namespace nibble::quantize
