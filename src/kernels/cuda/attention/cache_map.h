// Maps of a paged cache for Hopper's tensor copies. Included by .cu files alone.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/attention/prefill_shared.cuh"

namespace nibble::kernels::cuda {

// Keys or values of a layer as a tensor (pages times KV heads, page size, Dh). A box has up to 64
// keys of one page's head: of BF16 64 dimensions, 128 bytes in the swizzle that wgmma reads, of FP8
// all of up to 256, as they are. data: 16-byte aligned. Made anew for each launch, on the host
// alone.
inline CUtensorMap CacheMap(const void* data, KvFormat format, int32_t page_size,
                            int32_t head_dim) {
  const bool fp8 = format == KvFormat::kFp8;
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = {};
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                     &found);
    NIBBLE_CHECK(entry != nullptr && found == cudaDriverEntryPointSuccess,
                 "the driver has no cuTensorMapEncodeTiled, which a Hopper GPU needs: update it");
    return reinterpret_cast<Encode>(entry);
  }();
  const uint64_t row_bytes = static_cast<uint64_t>(head_dim) * KvElementBytes(format);
  // How many pages there are is not known here, and no box asks for one that is not there.
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(head_dim),
                               static_cast<cuuint64_t>(page_size), INT32_MAX};
  const cuuint64_t strides[2] = {row_bytes, row_bytes * page_size};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(fp8 ? head_dim : 64),
                             static_cast<cuuint32_t>(std::min(page_size, kMaxBoxKeys)), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
             const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             fp8 ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  NIBBLE_CHECK(result == CUDA_SUCCESS,
               "cuTensorMapEncodeTiled refuses a cache of pages of {} rows of {}: error {}",
               page_size, head_dim, static_cast<int>(result));
  return map;
}

}  // namespace nibble::kernels::cuda
