// A device that poses as another machine's and keeps its bytes in the host's memory. Counts lanes.
// The host's kernels pack from where the bytes are, so they carry steps alone.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace nibble::models::testing {

class PosingDevice : public Device {
 public:
  class Lane final : public UploadLane {
   public:
    Lane(PosingDevice& device, size_t slot_bytes) : device_(device), slot_(slot_bytes) {}
    size_t slot_bytes() const override { return slot_.size(); }
    Slot Next() override { return {.host = slot_.data(), .device = slot_.data()}; }
    void Send(const Slot&, size_t) override {}
    void Launched(const Slot&) override {}
    void Clear(void*, size_t) override {}
    void* stream() const override { return nullptr; }
    Status Finish() override {
      ++device_.finished;
      return {};
    }

   private:
    PosingDevice& device_;
    std::vector<std::byte> slot_;
  };

  const std::string& name() const override { return name_; }
  bool host_memory() const override { return false; }
  bool shares_host_memory() const override { return true; }
  void* stream() const override { return nullptr; }
  Memory memory() const override { return host_.memory(); }
  Result<std::byte*> Allocate(size_t bytes) override { return host_.Allocate(bytes); }
  void Free(std::byte* memory, size_t bytes) override { host_.Free(memory, bytes); }
  Result<std::byte*> AllocateShared(size_t bytes) override { return host_.AllocateShared(bytes); }
  void FreeShared(std::byte* memory, size_t bytes) override { host_.FreeShared(memory, bytes); }
  Result<std::unique_ptr<UploadLane>> MakeLane(size_t slot_bytes) override {
    if (no_memory) return Fail(Code::kResourceExhausted, "no memory for a lane");
    ++lanes;
    return std::make_unique<Lane>(*this, slot_bytes);
  }
  void Upload(void* to, const void* from, size_t bytes) override { host_.Copy(to, from, bytes); }
  void Download(void* to, const void* from, size_t bytes) override { host_.Copy(to, from, bytes); }
  void Copy(void* to, const void* from, size_t bytes) override { host_.Copy(to, from, bytes); }
  void Clear(void* memory, size_t bytes) override { host_.Clear(memory, bytes); }
  void Synchronize() override {}
  std::unique_ptr<DeviceGraph> Record(const std::function<void()>&) override { return nullptr; }
  std::unique_ptr<DeviceMark> Mark() override { return host_.Mark(); }
  void Set(DeviceMark& mark) override { host_.Set(mark); }
  void Wait(const DeviceMark& mark) override { host_.Wait(mark); }
  double SecondsBetween(const DeviceMark& a, const DeviceMark& b) override {
    return host_.SecondsBetween(a, b);
  }
  std::string failure() const override { return failed; }

  std::atomic<int> lanes = 0;
  std::atomic<int> finished = 0;
  std::string failed;
  bool no_memory = false;

 private:
  Device& host_ = HostDevice();
  const std::string name_ = "posing";
};

}  // namespace nibble::models::testing
