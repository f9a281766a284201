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
  void* stream() const override { return nullptr; }
  Memory memory() const override {
    const MemoryInfo info = GetMemoryInfo();
    return {.total_bytes = info.total_bytes, .free_bytes = info.available_bytes};
  }
  Result<std::byte*> Allocate(size_t bytes) override { return MapMemory(bytes); }
  void Free(std::byte* memory, size_t bytes) override { UnmapMemory(memory, bytes); }
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

Device& HostDevice() {
  static Host host;
  return host;
}

}  // namespace nibble
