// nibble bench model --mixed: how long answers wait for their next token while a prompt arrives.
#pragma once

#include "apps/load.h"
#include "apps/options.h"

namespace nibble::apps {

// Prints the figures; the exit status.
Result<int> BenchMixed(const LoadedModel& loaded, const BenchModelOptions& options);

}  // namespace nibble::apps
