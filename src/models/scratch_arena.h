// Scratch tensors of a step, carved from one buffer that is made before the first step.
//
// A Carve function takes its tensors in a fixed order and is run twice: once to count, once to hand
// out memory. Layers run one after another, so their tensors share the same bytes: the arena is
// rewound between them. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "device/buffer.h"
#include "kernels/ops.h"

namespace nibble::models {

class ScratchArena {
 public:
  // *pointer = room for count elements, 64-byte aligned; null while counting.
  template <typename T>
  void Take(T** pointer, int64_t count) {
    *pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += RoundUp(count * static_cast<int64_t>(sizeof(T)));
    peak_ = std::max(peak_, used_);
  }

  // The ops of a step share one workspace: the largest wins.
  void NeedWorkspace(size_t bytes) {
    workspace_ = std::max(workspace_, RoundUp(static_cast<int64_t>(bytes)));
  }

  int64_t mark() const { return used_; }
  void Rewind(int64_t mark) { used_ = mark; }

  // Bytes that `carve(arena)` needs.
  template <typename Carve>
  static int64_t Count(Carve&& carve) {
    ScratchArena arena;
    carve(arena);
    return arena.peak_ + arena.workspace_;
  }

  // Makes the buffer, points `carve`'s tensors into it and `context` at the workspace.
  template <typename Carve>
  static Result<Buffer> Make(Carve&& carve, Device& device, kernels::OpContext* context) {
    ScratchArena counted;
    carve(counted);
    NIBBLE_ASSIGN(
        Buffer memory,
        Buffer::Allocate(static_cast<size_t>(counted.peak_ + counted.workspace_), device));
    ScratchArena arena;
    arena.base_ = memory.data();
    carve(arena);
    context->stream = device.stream();
    context->workspace = memory.data() + counted.peak_;
    context->workspace_bytes = static_cast<size_t>(counted.workspace_);
    return memory;
  }

 private:
  static int64_t RoundUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  std::byte* base_ = nullptr;
  int64_t used_ = 0;
  int64_t peak_ = 0;
  int64_t workspace_ = 0;
};

}  // namespace nibble::models
