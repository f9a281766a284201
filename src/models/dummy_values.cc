#include "models/dummy_values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble::models {
namespace {

constexpr int64_t kChunk = 4096;  // bytes: made at a time, whatever part of them is wanted
constexpr int64_t kWords = kChunk / 8;
constexpr int64_t kParallelBytes = int64_t{1} << 20;

void FillWords(const DummyValues& values, int64_t word, uint64_t* out) {
  for (int64_t i = 0; i < kWords; ++i)
    out[i] = CounterHash(values.stream, static_cast<uint64_t>(word + i));
}

// Masks and shifts all bytes of a word at once: base + mask stays within each.
void FillMasked(const DummyValues& values, int64_t word, uint64_t mask, uint64_t base,
                uint64_t* out) {
  for (int64_t i = 0; i < kWords; ++i) {
    out[i] = (CounterHash(values.stream, static_cast<uint64_t>(word + i)) & mask) + base;
  }
}

void ReplaceNans(uint8_t* codes) {
  for (int64_t i = 0; i < kChunk; ++i) codes[i] = WithoutNan(codes[i]);
}

// Elements from `element` on, a multiple of four: a word gives four of them, of 16 bits each.
template <typename T, typename Convert>
void FillFloats(const DummyValues& values, int64_t element, const Convert& convert, T* out) {
  constexpr int64_t kCount = kChunk / static_cast<int64_t>(sizeof(T));
  alignas(64) std::array<uint64_t, kCount / 4> words;
  for (size_t i = 0; i < words.size(); ++i)
    words[i] = CounterHash(values.stream, static_cast<uint64_t>(element / 4) + i);
  alignas(64) std::array<int16_t, kCount> noise;
  static_assert(sizeof(noise) == sizeof(words));
  std::memcpy(noise.data(), words.data(), sizeof(noise));  // little-endian, as all targets are
  const MadeUpFloats floats(values);
  for (int64_t i = 0; i < kCount; ++i) out[i] = convert(floats.Of(noise[i]));
}

void FillFloatChunk(const DummyValues& values, int64_t byte, std::byte* out) {
  switch (values.dtype) {
    case DType::kBF16:
      return FillFloats(
          values, byte / 2, [](float v) { return FiniteBf16(v); },
          reinterpret_cast<uint16_t*>(out));
    case DType::kF16:
      return FillFloats(
          values, byte / 2, [](float v) { return F16FromFloat(v); },
          reinterpret_cast<uint16_t*>(out));
    case DType::kF32:
      return FillFloats(values, byte / 4, [](float v) { return v; }, reinterpret_cast<float*>(out));
    default:
      NIBBLE_CHECK(false, "dummy floats as {}", DTypeName(values.dtype));
  }
}

void FillQuotients(int64_t divisor, int64_t element, int32_t* out) {
  for (int64_t i = 0; i < kChunk / 4; ++i) out[i] = static_cast<int32_t>((element + i) / divisor);
}

// kChunk bytes of the tensor from `byte` on, a multiple of kChunk; out is aligned.
void FillChunk(const DummyValues& values, int64_t byte, std::byte* out) {
  using Kind = DummyValues::Kind;
  auto* words = reinterpret_cast<uint64_t*>(out);
  switch (values.kind) {
    case Kind::kBits:
      return FillWords(values, byte / 8, words);
    case Kind::kE4m3Codes:
      FillWords(values, byte / 8, words);
      return ReplaceNans(reinterpret_cast<uint8_t*>(out));
    case Kind::kE4m3Scales:
      FillMasked(values, byte / 8, RepeatByte(0x7F), 0, words);
      return ReplaceNans(reinterpret_cast<uint8_t*>(out));
    case Kind::kBytes:
      return FillMasked(values, byte / 8, RepeatByte(values.mask), RepeatByte(values.base), words);
    case Kind::kNibbles:
      return FillMasked(values, byte / 8, RepeatByte(values.mask * 0x11),
                        RepeatByte(values.base * 0x11), words);
    case Kind::kFloats:
      return FillFloatChunk(values, byte, out);
    case Kind::kQuotient:
      return FillQuotients(values.first, byte / 4, reinterpret_cast<int32_t*>(out));
    case Kind::kPair:
      std::memset(out, 0, kChunk);
      if (byte > 0) return;
      std::memcpy(out, &values.first, sizeof(values.first));
      std::memcpy(out + sizeof(values.first), &values.second, sizeof(values.second));
      return;
  }
}

void FillPart(const DummyValues& values, int64_t first, std::byte* out, int64_t count) {
  alignas(64) std::array<std::byte, kChunk> chunk;
  for (int64_t done = 0; done < count;) {
    const int64_t at = first + done;
    const int64_t offset = at % kChunk;
    const int64_t wanted = std::min(kChunk - offset, count - done);
    FillChunk(values, at - offset, chunk.data());
    std::memcpy(out + done, chunk.data() + offset, static_cast<size_t>(wanted));
    done += wanted;
  }
}

template <typename Decode>
double Rms(int first, int count, const Decode& decode) {
  double sum = 0;
  for (int code = first; code < first + count; ++code) {
    const double value = decode(static_cast<uint8_t>(code));
    sum += value * value;
  }
  return std::sqrt(sum / count);
}

}  // namespace

uint64_t DummyStream(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return MixBits(hash ^ CounterHash(seed, 0));
}

void FillDummy(const DummyValues& values, int64_t first, std::span<std::byte> out,
               ThreadPool* pool) {
  const auto bytes = static_cast<int64_t>(out.size());
  if (pool == nullptr || bytes < kParallelBytes) return FillPart(values, first, out.data(), bytes);
  pool->ParallelFor(bytes, kChunk, [&](int64_t begin, int64_t end, int) {
    FillPart(values, first + begin, out.data() + begin, end - begin);
  });
}

double RmsOfE2m1Codes() {
  return Rms(0, 16, [](uint8_t code) { return E2M1ToFloat(code); });
}

double RmsOfE4m3Codes() {
  // Codes without a sign: those with one have the same squares. 0x7F stands for 0x7E once more.
  return Rms(0, 128, [](uint8_t code) { return E4M3ToFloat(code == 0x7F ? uint8_t{0x7E} : code); });
}

}  // namespace nibble::models
