// From a weight's format, which is known at run time, to kernels that are compiled for it.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"

namespace nibble::kernels::cuda {

// f.template operator()<format>().
template <typename F>
decltype(auto) WithFormat(TileFormat format, const F& f) {
  switch (format) {
    case TileFormat::kNvfp4:
      break;
    case TileFormat::kMxfp4:
      return f.template operator()<TileFormat::kMxfp4>();
    case TileFormat::kBf16:
      return f.template operator()<TileFormat::kBf16>();
    case TileFormat::kFp8:
      return f.template operator()<TileFormat::kFp8>();
    case TileFormat::kMxfp8:
      return f.template operator()<TileFormat::kMxfp8>();
    case TileFormat::kFp8Groups:
      return f.template operator()<TileFormat::kFp8Groups>();
    case TileFormat::kInt4:
      return f.template operator()<TileFormat::kInt4>();
    case TileFormat::kInt8:
      return f.template operator()<TileFormat::kInt8>();
  }
  return f.template operator()<TileFormat::kNvfp4>();
}

}  // namespace nibble::kernels::cuda
