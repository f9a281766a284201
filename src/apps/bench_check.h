// nibble bench model --check: whether the device computes what the reference does.
#pragma once

#include "apps/options.h"
#include "base/error.h"
#include "eval/logits_distance.h"

namespace nibble::apps {

// The first two layers and the head of a model with made-up weights, at their true shapes and with
// the model's own weights, on the device and by the reference's ops on the host.
Result<eval::LogitsDistance> CheckAgainstReference(const BenchModelOptions& options);

}  // namespace nibble::apps
