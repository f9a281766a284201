#include "tensor/tensor.h"

#include <fmt/format.h>

namespace nibble {

std::string Shape::ToString() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

}  // namespace nibble
