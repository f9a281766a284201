// The bytes of made-up tensors: every value is a pure function of (stream, element index), so that
// any part of a tensor can be made by itself, by any number of threads, with the same result on
// every machine.
//
// Word w of a stream is a mix of (stream, w) (counter mode of splitmix64's finaliser): no state is
// carried along. Thread-safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/thread_pool.h"
#include "tensor/dtype.h"

namespace nibble::models {

struct DummyValues {
  enum class Kind : uint8_t {
    kBits,       // every bit random: E2M1 and integer codes
    kE4m3Codes,  // every E4M3 code but the NaNs
    kBytes,      // base + (0 .. mask), mask a power of two less 1: scale codes
    kNibbles,    // the same for both halves of a byte: zero points
    kFloats,     // uniform in centre ± spread, BF16, F16 or F32
    kQuotient,   // I32: index / divisor
    kPair,       // I64: first, second
  } kind = Kind::kBits;
  DType dtype = DType::kU8;
  uint8_t base = 0;
  uint8_t mask = 0;
  float centre = 0;
  float spread = 0;
  int64_t first = 0;  // divisor of kQuotient
  int64_t second = 0;
  uint64_t stream = 0;
};

// Of (seed, tensor name).
uint64_t DummyStream(uint64_t seed, std::string_view name);

// Writes bytes [first, first + out.size()) of the tensor. pool: may be null; not used from inside
// one of its own loops.
void FillDummy(const DummyValues& values, int64_t first, std::span<std::byte> out,
               ThreadPool* pool);

// Root mean squares of what the kinds decode to, for scales that give a wanted deviation.
double RmsOfE2m1Codes();
double RmsOfE4m3Codes();
double RmsOfE4m3Scales(uint8_t base, uint8_t mask);

}  // namespace nibble::models
