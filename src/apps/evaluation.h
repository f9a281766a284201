// What eval and quantize share: models loaded for reading a text, the text, and the comparison.
#pragma once

#include <string>

#include "apps/load.h"
#include "apps/options.h"
#include "eval/compare.h"

namespace nibble::apps {

// The file, or the built-in sample for "".
Result<std::string> EvalText(const std::string& file);

// For progress.
int64_t TokensIn(const engine::Engine& model, const std::string& text);

// An engine for one text at a time, in windows of `window` tokens.
Result<LoadedModel> LoadForReading(ModelOptions options, int64_t window,
                                   models::LinearObserver* observer = nullptr);

// Reads the text with both models, with progress.
Result<eval::Comparison> CompareModels(engine::Engine& model, engine::Engine& reference,
                                       const std::string& text, int64_t window);

// A table for people.
std::string ComparisonTable(const eval::Comparison& comparison, const models::ModelInfo& model,
                            const models::ModelInfo& reference);

}  // namespace nibble::apps
