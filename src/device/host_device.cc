#include <algorithm>
#include <chrono>
#include <cstring>

#include "device/buffer.h"
#include "device/cpu.h"
#include "device/device.h"

namespace nibble {
namespace {

struct HostMark final : DeviceMark {
  std::chrono::steady_clock::time_point time = std::chrono::steady_clock::now();
};

class Host final : public Device {
 public:
  const std::string& name() const override { return name_; }
  bool host_memory() const override { return true; }
  bool shares_host_memory() const override { return true; }
  void* stream() const override { return nullptr; }
  Memory memory() const override {
    const MemoryInfo info = GetMemoryInfo();
    return {.total_bytes = info.total_bytes, .free_bytes = info.available_bytes};
  }
  Result<std::byte*> Allocate(size_t bytes) override { return MapMemory(bytes); }
  void Free(std::byte* memory, size_t bytes) override { UnmapMemory(memory, bytes); }
  Result<std::unique_ptr<UploadLane>> MakeLane(size_t) override {
    return std::unique_ptr<UploadLane>();
  }
  Result<std::byte*> AllocateShared(size_t bytes) override { return MapMemory(bytes); }
  void FreeShared(std::byte* memory, size_t bytes) override { UnmapMemory(memory, bytes); }
  void Upload(void* to, const void* from, size_t bytes) override { Copy(to, from, bytes); }
  void Download(void* to, const void* from, size_t bytes) override { Copy(to, from, bytes); }
  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  void Clear(void* memory, size_t bytes) override {
    if (bytes > 0) std::memset(memory, 0, bytes);
  }
  void Synchronize() override {}
  std::unique_ptr<DeviceGraph> Record(const std::function<void()>&) override { return nullptr; }
  std::unique_ptr<DeviceMark> Mark() override { return std::make_unique<HostMark>(); }
  void Set(DeviceMark& mark) override { static_cast<HostMark&>(mark) = HostMark(); }
  void Wait(const DeviceMark&) override {}
  double SecondsBetween(const DeviceMark& begin, const DeviceMark& end) override {
    return std::chrono::duration<double>(static_cast<const HostMark&>(end).time -
                                         static_cast<const HostMark&>(begin).time)
        .count();
  }
  std::string failure() const override { return ""; }

 private:
  const std::string name_ = "cpu";
};

}  // namespace

Device::Memory UnifiedMemory(const MemoryInfo& host) {
  // The system, a desktop and whoever else lives there must never be swapped out for a model.
  constexpr int64_t kLeastReserve = int64_t{2} << 30;
  constexpr int64_t kReserveShare = 32;  // of all memory
  const int64_t reserve = std::max(kLeastReserve, host.total_bytes / kReserveShare);
  return {.total_bytes = host.total_bytes,
          .free_bytes = std::max<int64_t>(0, host.available_bytes - reserve)};
}

double MeasureUploadBandwidth(Device& device) {
  constexpr size_t kSlotBytes = size_t{4} << 20;
  constexpr int kSends = 256;
  const auto made = device.MakeLane(kSlotBytes);
  if (!made || *made == nullptr) return 0;
  UploadLane& lane = **made;
  const auto send = [&] {
    const UploadLane::Slot slot = lane.Next();
    lane.Send(slot, kSlotBytes);
    lane.Launched(slot);
  };
  send();
  if (!lane.Finish()) return 0;
  HostMark begin;
  for (int i = 0; i < kSends; ++i) send();
  if (!lane.Finish()) return 0;
  const std::chrono::duration<double> took = HostMark().time - begin.time;
  return static_cast<double>(kSends * kSlotBytes) / took.count();
}

Device& HostDevice() {
  static Host host;
  return host;
}

}  // namespace nibble
