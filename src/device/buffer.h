// Buffer: owned, 64-byte aligned memory for weights, KV pages and workspaces, of the host or of
// another device.
//
// On the host, buffers of 2 MiB and more are aligned to 2 MiB and advised to use huge pages
// (+3..25 % at one token on CPUs); smaller ones, whole small pages each, share such memory. It is
// mapped, so untouched pages cost nothing and read as zero.
#pragma once

#include <cstddef>
#include <utility>

#include "base/error.h"
#include "device/device.h"

namespace nibble {

class Buffer {
 public:
  // kResourceExhausted, with the number of bytes, when the system has no memory for it.
  static Result<Buffer> Allocate(size_t bytes, Device& device = HostDevice());
  // Of the host's memory that kernels of the device may use in place (Device::AllocateShared).
  static Result<Buffer> AllocateShared(size_t bytes, Device& device);

  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        device_(other.device_),
        shared_(other.shared_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    std::swap(shared_, other.shared_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  Device* device_ = nullptr;
  bool shared_ = false;
};

// For tests: from now on buffers (of up to 256 MiB) that need not begin with zeros, those of GPUs,
// begin full of `value`, as memory that was in use before would.
void FillNewBuffers(std::byte value);

// What the host's buffers are made of; zero bytes give null.
Result<std::byte*> MapMemory(size_t bytes);
void UnmapMemory(std::byte* memory, size_t bytes);

}  // namespace nibble
