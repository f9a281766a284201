// The folder that a command makes: it appears whole or not at all.
#pragma once

#include <functional>
#include <string>

#include "base/error.h"

namespace nibble::quantize {

// kInvalidArgument if it exists already and is not to be replaced.
Status CheckDestination(const std::string& destination, bool replace);

// Lets `write` fill a folder beside the destination, which is renamed at the end.
Status WriteBeside(const std::string& destination,
                   const std::function<Status(const std::string& folder)>& write);

}  // namespace nibble::quantize
