// Where the time of a step goes: a table of ops that puts a mark on the device before and after
// every call, and the sums per op.
//
// Marks keep neighbouring kernels apart, so a profile has the time of each op alone; a step without
// it is faster by what neighbours overlap. One profile at a time; not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace nibble::kernels {

class OpProfile {
 public:
  // `inner` outlives the profile. Its table is inner's with marks, and is never recorded.
  explicit OpProfile(const OpTable& inner);
  ~OpProfile();
  OpProfile(const OpProfile&) = delete;
  OpProfile& operator=(const OpProfile&) = delete;

  const OpTable& table() const { return table_; }

  struct Line {
    std::string_view op;
    int64_t calls = 0;
    double seconds = 0;
  };
  // What was called since the last time, the longest first. Waits for the device.
  std::vector<Line> Take();

 private:
  template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
  static void Run(const OpContext& context, const Params& params);
  template <typename Params, void (*OpTable::*kEntry)(const OpContext&, const Params&)>
  void Wrap(std::string_view name);

  struct Call {
    std::string_view op;
    std::unique_ptr<DeviceMark> begin;
    std::unique_ptr<DeviceMark> end;
  };

  const OpTable& inner_;
  OpTable table_;
  std::vector<Call> calls_;
  std::vector<std::pair<void*, std::string_view>> names_;  // of the wrappers
};

}  // namespace nibble::kernels
