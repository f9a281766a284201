// Resident: an array that ops read, made on the host and kept where they read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "device/buffer.h"
#include "device/device.h"

namespace nibble {

template <typename T>
class Resident {
 public:
  // Replaces the array. The host's copy goes when the device has its own.
  Status Assign(std::vector<T> values, Device& device) {
    size_ = values.size();
    if (device.host_memory()) {
      host_ = std::move(values);
      return {};
    }
    host_.clear();
    NIBBLE_ASSIGN(memory_, Buffer::Allocate(size_ * sizeof(T), device));
    device.Upload(memory_.data(), values.data(), size_ * sizeof(T));
    return {};
  }
  void clear() {
    host_.clear();
    memory_ = {};
    size_ = 0;
  }

  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  // For ops; null if empty.
  const T* data() const {
    if (empty()) return nullptr;
    return host_.empty() ? memory_.as<T>() : host_.data();
  }
  // On the host device alone.
  const T& operator[](size_t i) const { return host_[i]; }

 private:
  std::vector<T> host_;
  Buffer memory_;
  size_t size_ = 0;
};

}  // namespace nibble
