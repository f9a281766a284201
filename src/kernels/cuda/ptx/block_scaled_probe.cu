#include "kernels/cuda/ptx/block_scaled_probe.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/block_scaled_mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

// WarpRegisters, as arrays that device code may index.
struct Registers {
  uint32_t a[32][4];
  uint32_t b[32][2];
  uint32_t scales_a[32];
  uint32_t scales_b[32];
  float c[32][4];
};
static_assert(sizeof(Registers) == sizeof(ptx::WarpRegisters));

template <int kSelectorA, int kSelectorB>
__global__ void ProbeKernel(Registers* warps) {
  ptx::WaitForPredecessor();
  Registers& warp = warps[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x);
  ptx::BlockScaledMma<kSelectorA, kSelectorB>(warp.c[lane], warp.a[lane], warp.b[lane],
                                              warp.scales_a[lane], warp.scales_b[lane]);
}

}  // namespace

void ProbeBlockScaledMma(std::span<ptx::WarpRegisters> warps, int selector_a, int selector_b) {
  constexpr void (*kKernels[2][4])(Registers*) = {
      {ProbeKernel<0, 0>, ProbeKernel<0, 1>, ProbeKernel<0, 2>, ProbeKernel<0, 3>},
      {ProbeKernel<1, 0>, ProbeKernel<1, 1>, ProbeKernel<1, 2>, ProbeKernel<1, 3>}};
  Registers* device = nullptr;
  cudaMalloc(&device, warps.size_bytes());
  cudaMemcpy(device, warps.data(), warps.size_bytes(), cudaMemcpyHostToDevice);
  LaunchPdl(kKernels[selector_a][selector_b], static_cast<unsigned>(warps.size()), 32, 0, nullptr,
            device);
  cudaMemcpy(warps.data(), device, warps.size_bytes(), cudaMemcpyDeviceToHost);
  cudaFree(device);
}

}  // namespace nibble::kernels::cuda
