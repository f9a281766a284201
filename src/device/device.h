// Device: where a backend's ops run and where the memory lies that they read and write.
//
// The host is one (CPU kernels read what everybody reads); a CUDA GPU is another, with a stream on
// which copies and kernels are ordered. Callers that hold arrays for ops go through it and never
// dereference what a device without host_memory() handed out. Thread-safety: one thread at a time,
// the engine's, after loading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"

namespace nibble {

// A sequence of kernels recorded once and launched as one.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  virtual void Launch() = 0;
};

// A moment on a device's stream.
class DeviceMark {
 public:
  virtual ~DeviceMark() = default;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const std::string& name() const = 0;  // "cuda:0 (NVIDIA H200)", "cpu"
  // Whether its memory is the host's: then copies are plain copies.
  virtual bool host_memory() const = 0;
  // What kernels of this device are launched on (a cudaStream_t); null on the host.
  virtual void* stream() const = 0;

  struct Memory {
    int64_t total_bytes = 0;
    int64_t free_bytes = 0;  // what can be allocated now
  };
  virtual Memory memory() const = 0;

  // 256-byte aligned; content undefined on GPUs, zero on the host.
  virtual Result<std::byte*> Allocate(size_t bytes) = 0;
  virtual void Free(std::byte* memory, size_t bytes) = 0;

  // Ordered with the kernels on the stream. Upload has read `from` when it returns; Download waits
  // until the bytes are there.
  virtual void Upload(void* to, const void* from, size_t bytes) = 0;
  virtual void Download(void* to, const void* from, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;
  virtual void Clear(void* memory, size_t bytes) = 0;
  virtual void Synchronize() = 0;

  // Records what `launch` launches. Null where nothing is recorded: call it every time instead.
  virtual std::unique_ptr<DeviceGraph> Record(const std::function<void()>& launch) = 0;

  virtual std::unique_ptr<DeviceMark> Mark() = 0;
  // Of two marks that the device has passed.
  virtual double SecondsBetween(const DeviceMark& begin, const DeviceMark& end) = 0;

  // Empty while all is well; else why the device can no longer be used.
  virtual std::string failure() const = 0;
};

Device& HostDevice();

// GPU `index`. kUnsupported, with the reason, where the build, the driver or the GPU is missing.
Result<Device*> CudaDevice(int index = 0);

}  // namespace nibble
