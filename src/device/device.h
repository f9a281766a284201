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

// A moment on a device's stream; of the stream's end when it was made or set.
class DeviceMark {
 public:
  virtual ~DeviceMark() = default;
};

// One thread's way of bringing bytes to a device: two slots of pinned memory, each with as much
// device memory, so that one is filled and checked while the other travels and is unpacked.
// Ordered by a stream of its own. For loading: its memory goes with it.
class UploadLane {
 public:
  struct Slot {
    std::byte* host = nullptr;    // to be written
    std::byte* device = nullptr;  // where it goes
    int index = 0;
  };

  virtual ~UploadLane() = default;
  virtual size_t slot_bytes() const = 0;
  // The slot whose turn it is: waits until what was sent through it before has been used.
  virtual Slot Next() = 0;
  // The first `bytes` of the slot start on their way.
  virtual void Send(const Slot& slot, size_t bytes) = 0;
  // All that reads the slot on the device has been launched on stream().
  virtual void Launched(const Slot& slot) = 0;
  virtual void Clear(void* memory, size_t bytes) = 0;
  virtual void* stream() const = 0;
  // Waits for all of it; an error says why the device can no longer be used.
  virtual Status Finish() = 0;
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
    // What can be allocated now. Of shared memory the page cache counts as free, and a reserve for
    // the system does not (UnifiedMemory).
    int64_t free_bytes = 0;
  };
  virtual Memory memory() const = 0;

  // 256-byte aligned; content undefined on GPUs, zero on the host. From any thread.
  virtual Result<std::byte*> Allocate(size_t bytes) = 0;
  virtual void Free(std::byte* memory, size_t bytes) = 0;
  // Memory of the host that kernels of this device read and write in place (pinned). For what the
  // host reads after a mark has been passed, without a copy.
  virtual Result<std::byte*> AllocateShared(size_t bytes) = 0;
  virtual void FreeShared(std::byte* memory, size_t bytes) = 0;

  // Ordered with the kernels on the stream. Upload has read `from` when it returns, and may be
  // called from any thread; Download waits until the bytes are there.
  virtual void Upload(void* to, const void* from, size_t bytes) = 0;
  virtual void Download(void* to, const void* from, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;
  virtual void Clear(void* memory, size_t bytes) = 0;
  virtual void Synchronize() = 0;

  // Records what `launch` launches. Null where nothing can be (no memory): call it every time.
  virtual std::unique_ptr<DeviceGraph> Record(const std::function<void()>& launch) = 0;

  virtual std::unique_ptr<DeviceMark> Mark() = 0;
  // Moves a mark of this device to the end of the stream; allocates nothing.
  virtual void Set(DeviceMark& mark) = 0;
  // Returns when the device has passed the mark.
  virtual void Wait(const DeviceMark& mark) = 0;
  // Of two marks that the device has passed.
  virtual double SecondsBetween(const DeviceMark& begin, const DeviceMark& end) = 0;

  // Empty while all is well; else why the device can no longer be used.
  virtual std::string failure() const = 0;

  // Whether it takes what it allocates from the host's memory: then a file in the page cache and
  // its copy on the device compete for the same bytes.
  virtual bool shares_host_memory() const = 0;
  // Any number of threads may have a lane each, beside the engine's thread. Null on the host, whose
  // memory is written in place.
  virtual Result<std::unique_ptr<UploadLane>> MakeLane(size_t slot_bytes) = 0;
};

Device& HostDevice();

// Of a GPU that shares the host's memory, from what the system says: the driver knows nothing of
// what the page cache could give back.
struct MemoryInfo;
Device::Memory UnifiedMemory(const MemoryInfo& host);

// Bytes per second from pinned memory to the device: what loading cannot outrun. 0 where there is
// no lane.
double MeasureUploadBandwidth(Device& device);

// GPU `index`. kUnsupported, with the reason, where the build, the driver or the GPU is missing.
Result<Device*> CudaDevice(int index = 0);

}  // namespace nibble
