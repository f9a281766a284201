#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/gather_rows/gather_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) GatherRowsKernel(GatherRowsParams p, bool aligned) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVector;
  const uint16_t* from = p.x + p.rows[blockIdx.x] * p.d;
  uint16_t* to = p.out + blockIdx.x * p.d;
  StoreBf16x8(to + at, LoadBf16x8(from + at, p.d - at, aligned), p.d - at, aligned);
}

}  // namespace

void GatherRows(const OpContext& context, const GatherRowsParams& params) {
  constexpr int64_t kPerBlock = int64_t{kThreads} * kVector;
  const dim3 grid(static_cast<unsigned>(params.r),
                  static_cast<unsigned>((params.d + kPerBlock - 1) / kPerBlock));
  LaunchPdl(GatherRowsKernel, grid, kThreads, 0, StreamOf(context), params,
            VectorsAligned(params.d, params.x, params.out));
}

}  // namespace nibble::kernels::cuda
