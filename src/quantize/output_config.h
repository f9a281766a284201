// The text files of a quantised checkpoint: config.json with its quantization_config,
// hf_quant_config.json where the layout has one, and the tokenizer's files as they are.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "quantize/quantizer.h"

namespace nibble::quantize {

// kept: modules that stay in higher precision, for the ignore lists.
Status WriteConfigFiles(const formats::Checkpoint& source, const std::string& folder,
                        const QuantizeOptions& options, const std::vector<std::string>& kept);

}  // namespace nibble::quantize
