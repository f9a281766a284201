#include <cuda_runtime.h>

#include "kernels/cuda/linear/fill.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ uint8_t MadeUpByte(const MadeUpBytes& bytes, int64_t at) {
  return static_cast<uint8_t>(MadeUpWord(bytes, at / 8) >> (at % 8 * 8));
}

// Item i: bytes [kBytes i, kBytes i + kBytes) of the output. Words where rows begin and end on one.
template <int kBytes>
__global__ void __launch_bounds__(kThreads)
    FillKernel(const MadeUpRows rows, int64_t row_items, int64_t items, std::byte* out) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t at = rows.first + item / row_items * rows.stride + item % row_items * kBytes;
  if constexpr (kBytes == 8) {
    reinterpret_cast<uint64_t*>(out)[item] = MadeUpWord(rows.bytes, at / 8);
  } else {
    out[item] = static_cast<std::byte>(MadeUpByte(rows.bytes, at));
  }
}

template <int kBytes>
void Launch(const MadeUpRows& rows, int64_t count, int64_t row_bytes, std::byte* out,
            cudaStream_t stream) {
  const int64_t row_items = row_bytes / kBytes, items = count * row_items;
  FillKernel<kBytes>
      <<<static_cast<unsigned>((items + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
          rows, row_items, items, out);
}

}  // namespace

void FillRows(const MadeUpRows& rows, int64_t count, int64_t row_bytes, std::byte* out,
              void* stream) {
  if (count == 0) return;
  const bool words = (rows.first | rows.stride | row_bytes) % 8 == 0;
  (words ? Launch<8> : Launch<1>)(rows, count, row_bytes, out, static_cast<cudaStream_t>(stream));
}

}  // namespace nibble::kernels::cuda
