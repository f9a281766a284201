// nibble pull: fetches a model into the Hugging Face cache.
#include <fmt/format.h>

#include "apps/load.h"
#include "formats/hub.h"

namespace nibble::apps {

int Pull(const PullOptions& options) {
  auto path = formats::ResolveModel(options.model);
  if (!path) return Report(path.error());
  fmt::print("{}\n", *path);
  return 0;
}

}  // namespace nibble::apps
