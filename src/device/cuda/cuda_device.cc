// CUDA GPUs through the static runtime, which opens the driver itself: a machine without one gets
// an error here and runs on.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>

#include "base/progress.h"
#include "device/cpu.h"
#include "device/device.h"
#include "device/slabs.h"

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
  explicit CudaMark(cudaStream_t stream) : stream_(stream) {
    cudaEventCreate(&event_);
    Set();
  }
  ~CudaMark() override { cudaEventDestroy(event_); }
  void Set() { cudaEventRecord(event_, stream_); }
  cudaEvent_t event() const { return event_; }

 private:
  cudaStream_t stream_;
  cudaEvent_t event_ = nullptr;
};

class Cuda;

class CudaLane final : public UploadLane {
 public:
  static Result<std::unique_ptr<CudaLane>> Create(Cuda& device, size_t slot_bytes);
  ~CudaLane() override;

  size_t slot_bytes() const override { return slot_bytes_; }
  Slot Next() override;
  void Send(const Slot& slot, size_t bytes) override;
  void Launched(const Slot& slot) override;
  void Clear(void* memory, size_t bytes) override;
  void* stream() const override { return stream_; }
  Status Finish() override;

 private:
  static constexpr int kSlots = 2;

  explicit CudaLane(Cuda& device) : device_(&device) {}

  Cuda* device_;
  size_t slot_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t used_[kSlots] = {};
  void* host_ = nullptr;    // (slots, slot_bytes)
  void* memory_ = nullptr;  // the same on the device
  int next_ = 0;
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
    device->integrated_ = properties.integrated != 0;
    device->name_ = fmt::format("cuda:{} ({})", index, properties.name);
    return device;
  }

  const std::string& name() const override { return name_; }
  bool host_memory() const override { return false; }
  bool shares_host_memory() const override { return integrated_; }
  void* stream() const override { return stream_; }

  Memory memory() const override {
    if (integrated_) return UnifiedMemory(GetMemoryInfo());
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return {.total_bytes = static_cast<int64_t>(total), .free_bytes = static_cast<int64_t>(free)};
  }

  Result<std::byte*> Allocate(size_t bytes) override {
    const std::lock_guard lock(memory_mutex_);
    Check(cudaSetDevice(index_));
    return slabs_.Allocate(bytes);
  }
  void Free(std::byte* memory, size_t) override {
    const std::lock_guard lock(memory_mutex_);
    slabs_.Free(memory);
  }
  Result<std::unique_ptr<UploadLane>> MakeLane(size_t slot_bytes) override {
    return CudaLane::Create(*this, slot_bytes);
  }
  Result<std::byte*> AllocateShared(size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* memory = nullptr;
    if (const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocMapped);
        error != cudaSuccess) {
      cudaGetLastError();
      return Fail(Code::kResourceExhausted, "cannot pin {} of the host's memory for {}: {}",
                  FormatBytes(static_cast<double>(bytes)), name_, cudaGetErrorString(error));
    }
    return static_cast<std::byte*>(memory);
  }
  void FreeShared(std::byte* memory, size_t) override { cudaFreeHost(memory); }

  void Upload(void* to, const void* from, size_t bytes) override {
    const std::lock_guard lock(upload_mutex_);
    SelectForThisThread();  // kernels follow
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
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // nothing is broken: the launches go on one by one
      return nullptr;
    }
    Check(error);
    if (executable == nullptr) return nullptr;
    return std::make_unique<CudaGraph>(executable, stream_);
  }

  std::unique_ptr<DeviceMark> Mark() override { return std::make_unique<CudaMark>(stream_); }
  void Set(DeviceMark& mark) override { static_cast<CudaMark&>(mark).Set(); }
  void Wait(const DeviceMark& mark) override {
    Check(cudaEventSynchronize(static_cast<const CudaMark&>(mark).event()));
  }
  double SecondsBetween(const DeviceMark& begin, const DeviceMark& end) override {
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, static_cast<const CudaMark&>(begin).event(),
                               static_cast<const CudaMark&>(end).event()));
    return milliseconds * 1e-3;
  }

  std::string failure() const override {
    const cudaError_t last = cudaGetLastError();
    const std::lock_guard lock(failure_mutex_);
    Note(last);
    return failure_;
  }

  void SelectForThisThread() const { Check(cudaSetDevice(index_)); }

  void Check(cudaError_t error) const {
    if (error == cudaSuccess) return;
    const std::lock_guard lock(failure_mutex_);
    Note(error);
  }

  std::string Describe(cudaError_t error) const {
    return fmt::format("{}: {} ({})", name_, cudaGetErrorString(error), cudaGetErrorName(error));
  }

 private:
  // The first error stays: after it the device does nothing any more, whatever is asked of it.
  void Note(cudaError_t error) const {
    if (error != cudaSuccess && failure_.empty()) failure_ = Describe(error);
  }

  Result<std::byte*> AllocatePages(size_t bytes) const {
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

  int index_ = 0;
  bool integrated_ = false;
  std::string name_;
  cudaStream_t stream_ = nullptr;
  std::mutex upload_mutex_;
  UploadRing ring_;
  std::mutex memory_mutex_;
  Slabs slabs_{{.allocate = [this](size_t bytes) { return AllocatePages(bytes); },
                .free = [](std::byte* memory) { cudaFree(memory); },
                .wait = [this] { Check(cudaDeviceSynchronize()); }}};
  mutable std::mutex failure_mutex_;
  mutable std::string failure_;
};

Result<std::unique_ptr<CudaLane>> CudaLane::Create(Cuda& device, size_t slot_bytes) {
  device.SelectForThisThread();
  std::unique_ptr<CudaLane> lane(new CudaLane(device));
  lane->slot_bytes_ = slot_bytes;
  cudaError_t error = cudaStreamCreateWithFlags(&lane->stream_, cudaStreamNonBlocking);
  for (cudaEvent_t& event : lane->used_)
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error == cudaSuccess)
    error = cudaHostAlloc(&lane->host_, kSlots * slot_bytes, cudaHostAllocDefault);
  if (error == cudaSuccess) error = cudaMalloc(&lane->memory_, kSlots * slot_bytes);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return Fail(Code::kResourceExhausted, "{} of memory for uploads: {}",
                FormatBytes(static_cast<double>(kSlots * slot_bytes)), device.Describe(error));
  }
  return lane;
}

CudaLane::~CudaLane() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : used_)
    if (event != nullptr) cudaEventDestroy(event);
  if (host_ != nullptr) cudaFreeHost(host_);
  if (memory_ != nullptr) cudaFree(memory_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

UploadLane::Slot CudaLane::Next() {
  device_->SelectForThisThread();
  const int index = next_;
  next_ = (next_ + 1) % kSlots;
  device_->Check(cudaEventSynchronize(used_[index]));  // at once if it was never recorded
  const size_t offset = static_cast<size_t>(index) * slot_bytes_;
  return {.host = static_cast<std::byte*>(host_) + offset,
          .device = static_cast<std::byte*>(memory_) + offset,
          .index = index};
}

void CudaLane::Send(const Slot& slot, size_t bytes) {
  device_->Check(cudaMemcpyAsync(slot.device, slot.host, bytes, cudaMemcpyHostToDevice, stream_));
}

void CudaLane::Launched(const Slot& slot) {
  device_->Check(cudaEventRecord(used_[slot.index], stream_));
}

void CudaLane::Clear(void* memory, size_t bytes) {
  if (bytes > 0) device_->Check(cudaMemsetAsync(memory, 0, bytes, stream_));
}

Status CudaLane::Finish() {
  device_->Check(cudaStreamSynchronize(stream_));
  if (const std::string failure = device_->failure(); !failure.empty())
    return Fail(Code::kInternal, "{}", failure);
  return {};
}

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
