// The filters' tables are split over two files; FindFilter (builtins.h) looks in both.
#pragma once

#include <string_view>

#include "text/jinja/builtins.h"

namespace nibble::text::jinja {

const Builtin* FindSequenceFilter(std::string_view name);

}  // namespace nibble::text::jinja
