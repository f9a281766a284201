// CUDA GPUs through the static runtime, which opens the driver itself: a machine without one gets
// an error here and runs on.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>

#include "base/progress.h"
#include "device/device.h"

namespace nibble {
namespace {

// Pinned host memory that uploads of small arrays pass through, as a ring: an upload returns at
// once, and waits only when it meets bytes whose copy may not have run yet.
class UploadRing {
 public:
  static constexpr size_t kBytes = size_t{8} << 20;
  static constexpr size_t kLargest = kBytes / 4;  // larger ones are copied piece by piece

  cudaError_t Create() {
    if (const cudaError_t error = cudaHostAlloc(&memory_, kBytes, cudaHostAllocDefault);
        error != cudaSuccess)
      return error;
    for (cudaEvent_t& event : events_)
      if (const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
          error != cudaSuccess)
        return error;
    return cudaSuccess;
  }

  cudaError_t Upload(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    // A quarter of the ring is reused only after the copies out of it have run.
    if (used_ + bytes > kLargest) {
      if (const cudaError_t error = cudaEventRecord(events_[quarter_], stream);
          error != cudaSuccess)
        return error;
      quarter_ = (quarter_ + 1) % 4;
      used_ = 0;
      if (const cudaError_t error = cudaEventSynchronize(events_[quarter_]); error != cudaSuccess)
        return error;
    }
    std::byte* staged = static_cast<std::byte*>(memory_) + quarter_ * kLargest + used_;
    std::memcpy(staged, from, bytes);
    used_ += (bytes + 63) / 64 * 64;
    return cudaMemcpyAsync(to, staged, bytes, cudaMemcpyHostToDevice, stream);
  }

 private:
  void* memory_ = nullptr;
  cudaEvent_t events_[4] = {};
  size_t quarter_ = 0;
  size_t used_ = 0;
};

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(cudaGraphExec_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }
  void Launch() override { cudaGraphLaunch(graph_, stream_); }

 private:
  cudaGraphExec_t graph_;
  cudaStream_t stream_;
};

class CudaMark final : public DeviceMark {
 public:
  explicit CudaMark(cudaStream_t stream) {
    cudaEventCreate(&event_);
    cudaEventRecord(event_, stream);
  }
  ~CudaMark() override { cudaEventDestroy(event_); }
  cudaEvent_t event() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class Cuda final : public Device {
 public:
  static Result<std::unique_ptr<Cuda>> Create(int index) {
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess)
      return Fail(Code::kUnsupported, "CUDA is not used: {}", cudaGetErrorString(error));
    if (index < 0 || index >= count)
      return Fail(Code::kUnsupported, "no GPU {}: this machine has {} (numbers start at 0)", index,
                  count);
    auto device = std::make_unique<Cuda>();
    cudaDeviceProp properties;
    cudaError_t error = cudaSetDevice(index);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, index);
    if (error == cudaSuccess)
      error = cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = device->ring_.Create();
    if (error != cudaSuccess)
      return Fail(Code::kUnsupported, "GPU {} cannot be used: {}", index,
                  cudaGetErrorString(error));
    device->index_ = index;
    device->name_ = fmt::format("cuda:{} ({})", index, properties.name);
    return device;
  }

  const std::string& name() const override { return name_; }
  bool host_memory() const override { return false; }
  void* stream() const override { return stream_; }

  Memory memory() const override {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return {.total_bytes = static_cast<int64_t>(total), .free_bytes = static_cast<int64_t>(free)};
  }

  Result<std::byte*> Allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* memory = nullptr;
    if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) {
      cudaGetLastError();
      return Fail(Code::kResourceExhausted, "cannot allocate {} on {}, which has {} free: {}",
                  FormatBytes(static_cast<double>(bytes)), name_,
                  FormatBytes(static_cast<double>(this->memory().free_bytes)),
                  cudaGetErrorString(error));
    }
    return static_cast<std::byte*>(memory);
  }
  void Free(std::byte* memory, size_t) override { cudaFree(memory); }

  void Upload(void* to, const void* from, size_t bytes) override {
    Check(cudaSetDevice(index_));  // of this thread: kernels follow
    auto* target = static_cast<std::byte*>(to);
    const auto* source = static_cast<const std::byte*>(from);
    while (bytes > 0) {
      const size_t piece = std::min(bytes, UploadRing::kLargest);
      Check(ring_.Upload(target, source, piece, stream_));
      target += piece, source += piece, bytes -= piece;
    }
  }
  void Download(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_));
    Synchronize();
  }
  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  void Clear(void* memory, size_t bytes) override {
    if (bytes > 0) Check(cudaMemsetAsync(memory, 0, bytes, stream_));
  }
  void Synchronize() override { Check(cudaStreamSynchronize(stream_)); }

  std::unique_ptr<DeviceGraph> Record(const std::function<void()>& launch) override {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    launch();
    Check(cudaStreamEndCapture(stream_, &graph));
    if (graph == nullptr) return nullptr;
    Check(cudaGraphInstantiate(&executable, graph, 0));
    cudaGraphDestroy(graph);
    if (executable == nullptr) return nullptr;
    return std::make_unique<CudaGraph>(executable, stream_);
  }

  std::unique_ptr<DeviceMark> Mark() override { return std::make_unique<CudaMark>(stream_); }
  double SecondsBetween(const DeviceMark& begin, const DeviceMark& end) override {
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, static_cast<const CudaMark&>(begin).event(),
                               static_cast<const CudaMark&>(end).event()));
    return milliseconds * 1e-3;
  }

  std::string failure() const override {
    if (failure_.empty()) Check(cudaGetLastError());
    return failure_;
  }

 private:
  // The first error stays: after it the device does nothing any more, whatever is asked of it.
  void Check(cudaError_t error) const {
    if (error != cudaSuccess && failure_.empty())
      failure_ =
          fmt::format("{}: {} ({})", name_, cudaGetErrorString(error), cudaGetErrorName(error));
  }

  int index_ = 0;
  std::string name_;
  cudaStream_t stream_ = nullptr;
  UploadRing ring_;
  mutable std::string failure_;
};

}  // namespace

Result<Device*> CudaDevice(int index) {
  static std::mutex mutex;
  // Never destroyed: the driver may be gone before statics are.
  static auto& devices = *new std::map<int, std::unique_ptr<Cuda>>;
  const std::lock_guard lock(mutex);
  if (!devices.contains(index)) {
    NIBBLE_ASSIGN(auto device, Cuda::Create(index));
    devices[index] = std::move(device);
  }
  return devices[index].get();
}

}  // namespace nibble
