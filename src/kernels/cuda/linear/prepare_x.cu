#include "kernels/cuda/linear/prepare_x.h"

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

struct Source {
  const int32_t* order;
  const float* multiplier;
  const uint16_t* x;
  int64_t x_stride;
  int k;

  // What column `column` of the weight meets.
  __device__ uint16_t At(int64_t token, int column) const {
    if (column >= k) return 0;
    const uint16_t value = x[token * x_stride + (order == nullptr ? column : order[column])];
    if (multiplier == nullptr) return value;
    return Bf16FromFloat(Bf16ToFloat(value) * multiplier[column]);
  }
  // Eight columns.
  __device__ uint4 VectorAt(int64_t token, int column) const {
    const uint16_t* const from = x + token * x_stride + column;
    if (order == nullptr && multiplier == nullptr && column + 8 <= k &&
        reinterpret_cast<uintptr_t>(from) % 16 == 0)
      return *reinterpret_cast<const uint4*>(from);
    uint32_t words[4];
    for (int i = 0; i < 4; ++i)
      words[i] = At(token, column + 2 * i) | static_cast<uint32_t>(At(token, column + 2 * i + 1))
                                                 << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

__global__ void TransformKernel(Source source, int padded_k, uint4* out) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int vector = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (vector * 8 >= padded_k) return;
  const int64_t token = blockIdx.y;
  out[token * (padded_k / 8) + vector] = source.VectorAt(token, vector * 8);
}

__global__ void PrepareKernel(Source source, int m, int token_tiles, int vectors, uint4* out) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= vectors) return;
  const int lane = index % 32;
  const int token = index / 32 % token_tiles * 8 + lane / 4;
  const int half = index / 32 / token_tiles;
  const int column = half / 2 * kTileColumns + lane % 4 * 16 + half % 2 * 8;
  out[index] = token < m ? source.VectorAt(token, column) : make_uint4(0, 0, 0, 0);
}

Source SourceOf(const CudaWeight& weight, const uint16_t* x, int64_t x_stride) {
  return {weight.column_order(), weight.input_multiplier(), x, x_stride,
          static_cast<int>(weight.k())};
}

unsigned Blocks(int items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

}  // namespace

void TransformX(const CudaWeight& weight, const uint16_t* x, int64_t x_stride, int64_t m,
                uint16_t* out, void* stream) {
  const int padded_k = weight.tiles().x_tiles * kTileColumns;
  LaunchPdl(TransformKernel, dim3(Blocks(padded_k / 8), static_cast<unsigned>(m)), dim3(kThreads),
            0, static_cast<cudaStream_t>(stream), SourceOf(weight, x, x_stride), padded_k,
            reinterpret_cast<uint4*>(out));
}

void PrepareX(const CudaWeight& weight, const uint16_t* x, int64_t x_stride, int m, int tokens,
              uint16_t* out, void* stream) {
  const int vectors = weight.tiles().x_tiles * (kTileColumns / 8) * tokens;
  LaunchPdl(PrepareKernel, dim3(Blocks(vectors)), dim3(kThreads), 0,
            static_cast<cudaStream_t>(stream), SourceOf(weight, x, x_stride), m, tokens / 8,
            vectors, reinterpret_cast<uint4*>(out));
}

}  // namespace nibble::kernels::cuda
