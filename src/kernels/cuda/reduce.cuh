// Sums and maxima over the threads of a warp or block, the same in every thread. The order is fixed
// by the block's size alone: a butterfly over the lanes, then one over the warps.
#pragma once

namespace nibble::kernels::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// blockDim is (threads, 1, 1), a multiple of a warp. `shared` has 32 places, which nobody else may
// touch before the next barrier.
template <typename T>
__device__ __forceinline__ T BlockSum(T value, T* shared) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = WarpSum(value);
  if (warps == 1) return value;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  return WarpSum(lane < warps ? shared[lane] : T{0});
}

}  // namespace nibble::kernels::cuda
