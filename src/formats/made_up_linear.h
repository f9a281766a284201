// A linear whose tensors are made up, as a view without bytes.
#pragma once

#include <optional>

#include "formats/checkpoint.h"
#include "formats/gather.h"

namespace nibble::formats {

// view: without its bytes. data, scales: how its tensors are made up, null where they are stored.
// rows: of these tensors, divisor 1. Empty where not all of it is made up, or scales do not lie in
// rows as codes do.
std::optional<LinearData> MakeUpLinear(const QuantView& view, const MadeUpBytes* data,
                                       const MadeUpBytes* scales, const RowSelection& rows,
                                       bool has_scales);

}  // namespace nibble::formats
