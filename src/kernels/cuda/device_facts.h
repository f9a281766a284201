// Facts of the current GPU that launches depend on. Which kernel serves, and how it is cut, follows
// from them alone, so that tests can plan for GPUs that are not there.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>

namespace nibble::kernels::cuda {

struct DeviceFacts {
  int multiprocessors = 0;
  int major = 0;
  int minor = 0;
  int shared_memory_per_block = 0;  // with opt-in
};

namespace device_facts {

inline DeviceFacts Read() {
  DeviceFacts f;
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&f.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&f.major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&f.minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&f.shared_memory_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         device);
  return f;
}

struct State {
  DeviceFacts facts = Read();
  size_t largest_launch = 0;
};

inline State& Get() {
  static State state;
  return state;
}

}  // namespace device_facts

// Read once.
inline const DeviceFacts& CurrentDevice() { return device_facts::Get().facts; }

// Whether blocks can have the 227 KB of data-centre GPUs; else they have 99 KB (8.6, 8.9, 12.x) or
// 163 (8.0).
inline bool HasLargeSharedMemory() { return CurrentDevice().shared_memory_per_block >= 200 * 1024; }

// ---- For tests

// From now on launches are planned for another GPU.
inline void PoseAs(const DeviceFacts& facts) { device_facts::Get().facts = facts; }

// The most dynamic shared memory that a launch has asked for so far.
inline size_t LargestLaunch() { return device_facts::Get().largest_launch; }
inline void NoteLaunch(size_t shared_bytes) {
  size_t& largest = device_facts::Get().largest_launch;
  largest = std::max(largest, shared_bytes);
}

}  // namespace nibble::kernels::cuda
