#include "models/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace nibble::models {
namespace {

std::vector<Architecture>& MutableRegistry() {
  static std::vector<Architecture> registry;
  return registry;
}

}  // namespace

Registration::Registration(Architecture architecture) {
  MutableRegistry().push_back(std::move(architecture));
}

const std::vector<Architecture>& RegisteredArchitectures() { return MutableRegistry(); }

Result<const Architecture*> FindArchitecture(const boost::json::object& config) {
  const boost::json::value* names = config.if_contains("architectures");
  if (names == nullptr || !names->is_array() || names->get_array().empty()) {
    return Fail(Code::kCorruption, "config.json: architectures is missing or not a list of names");
  }
  for (const boost::json::value& name : names->get_array()) {
    if (!name.is_string()) continue;
    for (const Architecture& architecture : RegisteredArchitectures()) {
      if (std::ranges::find(architecture.architectures, std::string_view(name.get_string())) !=
          architecture.architectures.end()) {
        return &architecture;
      }
    }
  }
  std::vector<std::string> known;
  for (const Architecture& architecture : RegisteredArchitectures()) {
    known.insert(known.end(), architecture.architectures.begin(), architecture.architectures.end());
  }
  std::ranges::sort(known);
  return Fail(Code::kUnsupported, "config.json: architecture {} is not supported; supported are {}",
              boost::json::serialize(*names), fmt::join(known, ", "));
}

Result<std::unique_ptr<LoadableModel>> BuildModel(const boost::json::object& config,
                                                  const BuildOptions& options) {
  NIBBLE_ASSIGN(const Architecture* architecture, FindArchitecture(config));
  return architecture->make(config, options);
}

}  // namespace nibble::models
