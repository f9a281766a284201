// Collectives between the ranks of one tensor-parallel model.
//
// Every rank calls the same operations in the same order; a call returns when its result is there.
// Results are the same bits on every rank: sums run in ascending order of rank. Thread-safety: one
// thread per rank.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace nibble {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data (n) = the sum of every rank's data.
  virtual void AllReduceSum(float* data, int64_t n) = 0;

  // all (size, n): every rank's mine (n), by rank.
  virtual void AllGather(const float* mine, int64_t n, float* all) = 0;
};

// Ranks as threads of this process. The communicators outlive every call on any of them.
std::vector<std::unique_ptr<Communicator>> MakeLoopback(int size);

}  // namespace nibble
