// A thread per four columns of a token.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 4;  // of a thread
constexpr int kAtOnce = 4;   // places whose rows are read together

// One column for each thread where columns do not come in fours.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) SumRowsKernel(const __grid_constant__ SumRowsParams p) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t token = blockIdx.y;
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (column >= p.d) return;
  const int count = p.top_k + 1;
  const Place* const places = p.lists.places + token * count;
  float sum[kWidth] = {};
  for (int first = 0; first < count; first += kAtOnce) {
    float y[kAtOnce][kWidth];
    float weight[kAtOnce];
    bool there[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = min(first + i, count - 1);
      const Place place = places[at];
      there[i] = first + i < count && place.row >= 0;
      weight[i] = place.weight;
      const float* const from = p.y + (there[i] ? place.row * p.y_stride : 0) + column;
      if constexpr (kWidth == 4) {
        const float4 values = *reinterpret_cast<const float4*>(from);
        y[i][0] = values.x, y[i][1] = values.y, y[i][2] = values.z, y[i][3] = values.w;
      } else {
        y[i][0] = *from;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int c = 0; c < kWidth; ++c)
        if (there[i]) sum[c] = __fmaf_rn(weight[i], y[i][c], sum[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < kWidth; ++c) {
    if (p.out_f32 != nullptr) {
      p.out_f32[token * p.out_stride + column + c] = sum[c];
    } else {
      uint16_t* const out = p.out + token * p.out_stride + column + c;
      const float y = p.add ? ptx::FirstBf16(*out) + ptx::RoundBf16(sum[c]) : sum[c];
      *out = static_cast<uint16_t>(ptx::PackBf16(y, 0.0f));
    }
  }
}

}  // namespace

void SumRows(const OpContext& context, const SumRowsParams& p) {
  const bool wide = p.d % kColumns == 0 && p.y_stride % kColumns == 0;
  const int64_t threads = wide ? p.d / kColumns : p.d;
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads),
                  static_cast<unsigned>(p.t));
  LaunchPdl(wide ? SumRowsKernel<kColumns> : SumRowsKernel<1>, grid, kThreads, 0, StreamOf(context),
            p);
}

}  // namespace nibble::kernels::cuda::moe
