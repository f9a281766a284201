// Made-up tensors on the host: the bytes of tensor/made_up.h, many at a time. Thread-safety: pure
// functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/thread_pool.h"
#include "tensor/made_up.h"

namespace nibble::models {

using DummyValues = MadeUpBytes;

// Of (seed, tensor name).
uint64_t DummyStream(uint64_t seed, std::string_view name);

// Writes bytes [first, first + out.size()) of the tensor. pool: may be null; not used from inside
// one of its own loops.
void FillDummy(const DummyValues& values, int64_t first, std::span<std::byte> out,
               ThreadPool* pool);

// Root mean squares of what the kinds decode to, for scales that give a wanted deviation.
double RmsOfE2m1Codes();
double RmsOfE4m3Codes();  // of kE4m3Scales, too

}  // namespace nibble::models
