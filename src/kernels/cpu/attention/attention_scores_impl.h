// attention_chunk.h over simd.h: reading keys and values, and the scores.
#pragma once

#include <type_traits>
#include <utility>

namespace nibble::kernels::NIBBLE_ISA {

// Position range [begin, end) that some row of the chunk sees, as block borders.
struct BlockRange {
  int32_t begin;
  int32_t end;
};

NIBBLE_SIMD int32_t MinInt(int32_t a, int32_t b) { return a < b ? a : b; }
NIBBLE_SIMD int32_t MaxInt(int32_t a, int32_t b) { return a > b ? a : b; }

static BlockRange VisibleBlocks(const AttentionChunk& c, int64_t row_begin, int64_t row_end) {
  int32_t first = INT32_MAX;
  int32_t last = -1;
  for (int64_t r = row_begin; r < row_end; ++r) {
    first = MinInt(first, c.first[r]);
    last = MaxInt(last, c.last[r]);
  }
  first = MaxInt(first, c.begin);
  last = MinInt(last, c.begin + kChunkKeys - 1);
  if (first > last) return {0, 0};
  return {first / kBlockKeys * kBlockKeys, (last / kBlockKeys + 1) * kBlockKeys};
}

// The block's first row in k or v: a block never crosses a page.
NIBBLE_SIMD const std::byte* BlockAddress(const KvLayerView& cache, const std::byte* base,
                                          const int32_t* page_table, int32_t kv_head,
                                          int32_t position) {
  const int shift = __builtin_ctz(static_cast<uint32_t>(cache.page_size));
  const int64_t page = page_table[position >> shift];
  const int64_t row =
      ((page * cache.kv_heads + kv_head) << shift) + (position & (cache.page_size - 1));
  const int64_t element_bytes = cache.format == KvFormat::kBf16 ? 2 : 1;
  return base + row * cache.head_dim * element_bytes;
}
NIBBLE_SIMD const std::byte* BlockAddress(const AttentionChunk& c, const std::byte* base,
                                          int32_t position) {
  return BlockAddress(c.cache, base, c.page_table, c.kv_head, position);
}

template <typename Count>
NIBBLE_SIMD F32 LoadElement(const uint16_t* p, Count count) {
  return LoadBf16(p, count);
}
template <typename Count>
NIBBLE_SIMD F32 LoadElement(const uint8_t* p, Count count) {
  return LoadE4M3(p, count);
}

NIBBLE_SIMD NativeI NativeLoadPairs(const uint16_t* p) {
  return NativeLoadI32(reinterpret_cast<const int32_t*>(p));
}
NIBBLE_SIMD NativeI NativeLoadPairs(const uint8_t* p) { return NativeLoadE4M3Pairs(p); }

// Sixteen pairs of elements: the first of each, and the second. Cheaper than two vectors of
// neighbours, as nothing moves between lanes.
struct Pairs {
  F32 even;
  F32 odd;
};
constexpr int64_t kPairElements = 2 * kLanes;

// Where a head consists of whole vectors of pairs, values and their sums are kept as Pairs: of
// every 32 elements the even ones, then the odd ones. Otherwise they lie in order.
NIBBLE_SIMD bool ValuesInPairs(int64_t head_dim) { return head_dim % kPairElements == 0; }

NIBBLE_SIMD NativeF FirstOfPairs(NativeI pairs) {
  return NativeFromBits(NativeShiftLeft<16>(pairs));
}
NIBBLE_SIMD NativeF SecondOfPairs(NativeI pairs) {
  return NativeFromBits(NativeAnd(pairs, NativeSetInt(static_cast<int32_t>(0xFFFF0000u))));
}

template <typename Element>
NIBBLE_SIMD Pairs LoadPairs(const Element* p) {
  Pairs result;
  for (int i = 0; i < kParts; ++i) {
    const NativeI pairs = NativeLoadPairs(p + 2 * i * kNativeLanes);
    result.even.part[i] = FirstOfPairs(pairs);
    result.odd.part[i] = SecondOfPairs(pairs);
  }
  return result;
}

// Asks for what lies where `p` does, but in the block `ahead`: the hardware does not see that one
// coming, as pages lie apart. One line per line read, so that requests never queue up.
template <typename Element>
NIBBLE_SIMD void PrefetchLike(const Element* p, const Element* block, const std::byte* ahead) {
  __builtin_prefetch(ahead + (p - block) * static_cast<int64_t>(sizeof(Element)), 0, 2);
}

// ---- Keys as a tile of scores reads them ----

// What scores are products of: FP32 or, where pairs of BF16 are multiplied at once, BF16. Queries
// are (rows, QueryStride), keys of a block (Dh, 16) in FP32, (Dh / 2, 16, 2) in BF16; an odd Dh is
// then one more, zeros.
using ScoreElement = std::conditional_t<kMultipliesPairs, uint16_t, float>;
using KeyPair = std::conditional_t<kMultipliesPairs, I32, Pairs>;

NIBBLE_SIMD int64_t QueryStride(int64_t head_dim) {
  return kMultipliesPairs ? (head_dim + 1) / 2 * 2 : head_dim;
}

NIBBLE_SIMD Pairs LoadKeyPair(const float* p) { return {LoadF32(p), LoadF32(p + kBlockKeys)}; }
template <typename Element>
NIBBLE_SIMD auto LoadKeyPair(const Element* p) {
  if constexpr (kMultipliesPairs)
    return LoadI32(reinterpret_cast<const int32_t*>(p));
  else
    return LoadPairs(p);
}

// Element d of key `row`, for which `value` is exact.
NIBBLE_SIMD void StoreKeyElement(float value, int64_t d, int row, float* out) {
  out[d * kBlockKeys + row] = value;
}
NIBBLE_SIMD void StoreKeyElement(float value, int64_t d, int row, uint16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  out[(d / 2 * kBlockKeys + row) * 2 + d % 2] = static_cast<uint16_t>(bits >> 16);
}

// kNativeLanes keys of 2 * kNativeLanes elements, transposed, to key `row` on of out. Pairs travel
// as dwords through one transposition and part afterwards.
template <typename Element, typename Out>
NIBBLE_SIMD void TransposePairs(const Element* keys, int64_t head_dim, int row, Out* out) {
  NativeI square[kNativeLanes];
  for (int r = 0; r < kNativeLanes; ++r) square[r] = NativeLoadPairs(keys + r * head_dim);
  NativeTranspose(square);
  for (int c = 0; c < kNativeLanes; ++c) {
    Out* at = out + 2 * c * kBlockKeys;
    if constexpr (kMultipliesPairs) {
      NativeStoreI32(reinterpret_cast<int32_t*>(at) + row, square[c]);
    } else {
      NativeStoreF32(at + row, FirstOfPairs(square[c]));
      NativeStoreF32(at + kBlockKeys + row, SecondOfPairs(square[c]));
    }
  }
}

// One block of keys (16, Dh) to out, transposed: a score then needs no horizontal sum.
template <typename Element>
static void TransposeKeys(const Element* keys, int64_t head_dim, ScoreElement* out) {
  constexpr int64_t kWidth = 2 * kNativeLanes;
  int64_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth)
    for (int row = 0; row < kBlockKeys; row += kNativeLanes)
      TransposePairs(keys + row * head_dim + d, head_dim, row, out + d * kBlockKeys);
  for (; d < head_dim; d += kLanes) {
    const int n = static_cast<int>(head_dim - d < kLanes ? head_dim - d : kLanes);
    const int64_t stored = QueryStride(head_dim) - d < kLanes ? QueryStride(head_dim) - d : kLanes;
    for (int row = 0; row < kBlockKeys; ++row) {
      float tail[kLanes];
      StoreF32(tail, LoadElement(keys + row * head_dim + d, Tail{n}));
      for (int i = 0; i < stored; ++i) StoreKeyElement(tail[i], d + i, row, out);
    }
  }
}

// The same in FP32 from a block of KeyLayout::kPairs, (Dh / 2, 16, 2).
template <typename Element>
static void WidenKeyPairs(const Element* keys, int64_t head_dim, const std::byte* ahead,
                          float* out) {
  for (int64_t d = 0; d < head_dim; d += 2) {
    const Element* at = keys + d * kBlockKeys;
    PrefetchLike(at, keys, ahead);
    const Pairs pairs = LoadPairs(at);
    StoreF32(out + d * kBlockKeys, pairs.even);
    StoreF32(out + (d + 1) * kBlockKeys, pairs.odd);
  }
}

// The same in BF16 from FP8. `next` is the block that follows.
template <typename Code>
static void CodesToBf16(const Code* codes, const Code* next, int64_t head_dim, uint16_t* out) {
  const int64_t n = kBlockKeys * head_dim;
  int64_t i = 0;
  for (; i + kCodesAtOnce <= n; i += kCodesAtOnce) {
    __builtin_prefetch(next + i, 0, 3);
    for (int half = 0; half < 2; ++half)
      NativeStoreI32(reinterpret_cast<int32_t*>(out + i) + half * kLanes,
                     NativeHalfOfE4M3Pairs(codes + i, half));
  }
  if (i < n) NativeStoreI32(reinterpret_cast<int32_t*>(out + i), NativeLoadE4M3Pairs(codes + i));
}

// Blocks of keys that were widened beforehand.
struct WideKeys {
  static constexpr int kStep = 2;  // elements that a round of ScoreTile takes

  const ScoreElement* data;
  int64_t stride;  // between blocks

  KeyPair Load(int block, int64_t d, int /*step*/) const {
    return LoadKeyPair(data + block * stride + d * kBlockKeys);
  }
};

// Blocks of KeyLayout::kPairs, read where they lie.
template <typename Element, int kBlocks>
struct KeyPairs {
  static constexpr int kStep = 2;

  const Element* data[kBlocks];
  const std::byte* ahead[kBlocks];

  KeyPair Load(int block, int64_t d, int /*step*/) const {
    const Element* at = data[block] + d * kBlockKeys;
    PrefetchLike(at, data[block], ahead[block]);
    return LoadKeyPair(at);
  }
};

// Blocks of FP8 that became BF16.
template <int kBlocks>
struct DecodedKeys {
  static constexpr int kStep = 2;

  const uint16_t* data;
  int64_t stride;                   // between blocks
  const std::byte* ahead[kBlocks];  // has as many codes

  KeyPair Load(int block, int64_t d, int /*step*/) const {
    __builtin_prefetch(ahead[block] + d * kBlockKeys, 0, 2);
    return LoadKeyPair(data + block * stride + d * kBlockKeys);
  }
};

// Blocks of FP8, which become BF16 on the way.
template <typename Code, int kBlocks>
struct CodeKeys {
  static constexpr int kStep = 4;  // 64 codes

  const Code* data[kBlocks];
  const Code* next[kBlocks];        // as in CodesToBf16
  const std::byte* ahead[kBlocks];  // has as many codes

  KeyPair Load(int block, int64_t d, int step) const {
    const int64_t at = d * kBlockKeys;
    if (step == 0) {
      __builtin_prefetch(next[block] + at, 0, 3);
      __builtin_prefetch(ahead[block] + at, 0, 2);
    }
    return {NativeHalfOfE4M3Pairs(data[block] + at, step / 2)};
  }
};

// ---- FP8 for few rows ----
//
// Codes become FP16 by a shift, 64 of them at once, and FP16 becomes FP32 on its way from memory:
// two thirds of the instructions of a code that becomes FP32 by itself. Of every 64 codes in order
// the even ones come first, then the odd ones: two Pairs.

struct Half {
  uint16_t bits;
};

// Heads whose rows are whole groups of codes.
NIBBLE_SIMD bool HalvesFit(int64_t head_dim) { return kWidensF16 && head_dim % kCodesAtOnce == 0; }

// A block (16, Dh) or (Dh / 2, 16, 2). `next` is the one that follows: codes are read faster than
// the second-level cache answers.
NIBBLE_SIMD void ToHalves(const uint8_t* codes, const uint8_t* next, int64_t head_dim, Half* out) {
  for (int64_t i = 0; i < kBlockKeys * head_dim; i += kCodesAtOnce) {
    __builtin_prefetch(next + i, 0, 3);
    NativeE4M3ToF16(codes + i, &out[i].bits);
  }
}

// Where the Pairs of codes `code` to code + 32 begin, code a multiple of 32.
NIBBLE_SIMD int64_t HalfIndex(int64_t code) { return code - code % kCodesAtOnce / 2; }

NIBBLE_SIMD Pairs LoadPairs(const Half* p) {
  return {LoadF16(&p->bits), LoadF16(&p[kCodesAtOnce / 2].bits)};
}

template <int kBlocks>
struct HalfKeys {
  static constexpr int kStep = 4;

  const Half* data;
  int64_t stride;                   // between blocks
  const std::byte* ahead[kBlocks];  // has as many codes

  Pairs Load(int block, int64_t d, int step) const {
    if (step == 0) __builtin_prefetch(ahead[block] + d * kBlockKeys, 0, 2);
    return LoadPairs(data + block * stride + d * kBlockKeys + HalfIndex(step * kBlockKeys));
  }
};

// ---- Scores ----

// sums[r][b] += q[r] . key[b] for pairs; query r lies at q + r * stride.
template <int kRows, int kBlocks>
NIBBLE_SIMD void AddPairs(const float* q, int64_t stride, const Pairs (&key)[kBlocks],
                          F32 (&sums)[kRows][kBlocks]) {
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b)
      sums[r][b] = Fma(Set(q[r * stride + 1]), key[b].odd, sums[r][b]);
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = Fma(Set(q[r * stride]), key[b].even, sums[r][b]);
}
template <int kRows, int kBlocks, typename Key>
NIBBLE_SIMD void AddPairs(const uint16_t* q, int64_t stride, const Key (&key)[kBlocks],
                          F32 (&sums)[kRows][kBlocks]) {
  for (int r = 0; r < kRows; ++r) {
    int32_t pair;
    std::memcpy(&pair, q + r * stride, sizeof pair);
    for (int b = 0; b < kBlocks; ++b)
      for (int i = 0; i < kParts; ++i)
        sums[r][b].part[i] = NativeFmaPairs(key[b].part[i], NativeSetInt(pair), sums[r][b].part[i]);
  }
}

// scores[r][0, 16 kBlocks) = scale * q[r] . keys, for kRows rows.
template <int kRows, int kBlocks, typename Keys>
NIBBLE_SIMD void ScoreTile(const ScoreElement* q, const Keys& keys, int64_t head_dim, F32 scale,
                           float* scores) {
  const int64_t stride = QueryStride(head_dim);
  F32 sums[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = Set(0.0f);
  for (int64_t round = 0; round + Keys::kStep <= stride; round += Keys::kStep) {
    for (int step = 0; step < Keys::kStep; step += 2) {
      KeyPair key[kBlocks];
      for (int b = 0; b < kBlocks; ++b) key[b] = keys.Load(b, round, step);
      AddPairs(q + round + step, stride, key, sums);
    }
  }
  if constexpr (!kMultipliesPairs)
    if (head_dim % 2 != 0)
      for (int r = 0; r < kRows; ++r)
        for (int b = 0; b < kBlocks; ++b)
          sums[r][b] =
              Fma(Set(q[(r + 1) * stride - 1]), keys.Load(b, head_dim - 1, 0).even, sums[r][b]);
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b)
      StoreF32(scores + r * kChunkKeys + b * kBlockKeys, Mul(sums[r][b], scale));
}

// fn.operator()<kRows>(first row) for all rows, kMost at a time.
template <int kMost, typename Fn>
NIBBLE_SIMD void ForRowTiles(int64_t rows, Fn&& fn) {
  int64_t r = 0;
  for (; r + kMost <= rows; r += kMost) fn.template operator()<kMost>(r);
  const auto rest = [&]<int... kLess>(std::integer_sequence<int, kLess...>) {
    ((rows - r == kLess + 1 ? fn.template operator()<kLess + 1>(r) : void()), ...);
  };
  rest(std::make_integer_sequence<int, kMost - 1>());
}

// So few rows do not pay for keys and values in FP32.
constexpr int64_t kFewRows = 8;

// Rows beyond a tile's make tiles twice as tall and half as wide, where keys and values are widened
// on the way: once for all of them. Of values where registers suffice.
constexpr int kTallTileRows = 2 * kTileRows;
constexpr bool kTallValues = kTilePairs > 1;

// Where keys or values (base) of the next chunk lie, `offset` positions behind its begin; where
// there are none, `otherwise`.
NIBBLE_SIMD const std::byte* NextBlock(const AttentionChunk& c, const std::byte* base,
                                       int32_t offset, const std::byte* otherwise) {
  const int32_t next = c.ahead.begin + offset;
  if (offset >= kChunkKeys || next > c.ahead.last) return otherwise;
  return BlockAddress(c.cache, base, c.ahead.page_table, c.ahead.kv_head, next);
}

// Scores ask for keys of the next chunk, the values' products for its values. Where products of
// pairs make scores take half the time of values, they leave the second half of the keys to those.
NIBBLE_SIMD bool ScoresAskForHalf(const AttentionChunk& c) {
  return kMultipliesPairs && c.rows <= kFewRows;
}
NIBBLE_SIMD int32_t HalfOf(BlockRange range) {
  const int32_t blocks = (range.end - range.begin) / kBlockKeys;
  return (blocks + 1) / 2 * kBlockKeys;
}
NIBBLE_SIMD const std::byte* AheadOfScores(const AttentionChunk& c, BlockRange range,
                                           int32_t position, const std::byte* block) {
  const int32_t offset = position - range.begin;
  return NextBlock(c, c.cache.k,
                   ScoresAskForHalf(c) ? offset / (2 * kBlockKeys) * kBlockKeys : offset, block);
}

template <int kBlocks, typename Keys>
static void ScoreRows(const AttentionChunk& c, const Keys& keys, int32_t position) {
  const int64_t head_dim = c.cache.head_dim;
  constexpr bool kTall = kBlocks <= kTileBlocks / 2 && !std::is_same_v<Keys, WideKeys>;
  ForRowTiles<kTall ? kTallTileRows : kTileRows>(c.rows, [&]<int kRows>(int64_t r) {
    // Rows are in order of position. Scores that no row of the tile looks at are never read.
    if (c.last[r + kRows - 1] < position || c.first[r] >= position + kBlocks * kBlockKeys) return;
    ScoreTile<kRows, kBlocks>(
        reinterpret_cast<const ScoreElement*>(c.q) + r * QueryStride(head_dim), keys, head_dim,
        Set(c.scale), c.scores + r * kChunkKeys + (position - c.begin));
  });
}

// kBlocks blocks from `position` on, of those in `range`; meanwhile it asks for the next chunk. Few
// rows read keys where they lie, or as FP16; many share keys that were widened once. Products of
// pairs take keys of BF16 where they lie, however many rows.
template <typename Element, int kBlocks>
static void ScoreBlocks(const AttentionChunk& c, BlockRange range, int32_t position) {
  const int64_t head_dim = c.cache.head_dim;
  const bool pairs = c.cache.key_layout == KeyLayout::kPairs;
  KeyPairs<Element, kBlocks> keys;
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t at = position + b * kBlockKeys;
    const std::byte* block = BlockAddress(c, c.cache.k, at);
    keys.data[b] = reinterpret_cast<const Element*>(block);
    keys.ahead[b] = AheadOfScores(c, range, at, block);
  }
  const int64_t stride = PaddedHeadDim(head_dim) * kBlockKeys;
  const auto next = [&](int b) {
    const int32_t at = MinInt(position + (b + 1) * kBlockKeys, range.end - kBlockKeys);
    return reinterpret_cast<const Element*>(BlockAddress(c, c.cache.k, at));
  };
  if (pairs && (kMultipliesPairs || c.rows <= kFewRows)) {
    if constexpr (std::is_same_v<Element, uint16_t>) {
      return ScoreRows<kBlocks>(c, keys, position);
    } else if constexpr (kMultipliesPairs) {
      if (c.rows <= kFewRows && head_dim % CodeKeys<Element, kBlocks>::kStep == 0) {
        CodeKeys<Element, kBlocks> codes;
        for (int b = 0; b < kBlocks; ++b) {
          codes.data[b] = keys.data[b];
          codes.next[b] = next(b);
          codes.ahead[b] = keys.ahead[b];
        }
        return ScoreRows<kBlocks>(c, codes, position);
      }
      auto* const data = reinterpret_cast<uint16_t*>(c.keys);
      DecodedKeys<kBlocks> decoded{.data = data, .stride = stride, .ahead = {}};
      for (int b = 0; b < kBlocks; ++b) {
        CodesToBf16(keys.data[b], next(b), head_dim, data + b * stride);
        decoded.ahead[b] = keys.ahead[b];
      }
      return ScoreRows<kBlocks>(c, decoded, position);
    } else if (HalvesFit(head_dim)) {
      auto* const data = reinterpret_cast<Half*>(c.keys);
      HalfKeys<kBlocks> halves{.data = data, .stride = stride, .ahead = {}};
      for (int b = 0; b < kBlocks; ++b) {
        ToHalves(keys.data[b], next(b), head_dim, data + b * stride);
        halves.ahead[b] = keys.ahead[b];
      }
      return ScoreRows<kBlocks>(c, halves, position);
    }
  }
  auto* const wide = reinterpret_cast<ScoreElement*>(c.keys);
  for (int b = 0; b < kBlocks; ++b) {
    if constexpr (!kMultipliesPairs)
      if (pairs) {
        WidenKeyPairs(keys.data[b], head_dim, keys.ahead[b], wide + b * stride);
        continue;
      }
    TransposeKeys(keys.data[b], head_dim, wide + b * stride);
  }
  ScoreRows<kBlocks>(c, WideKeys{wide, stride}, position);
}

template <typename Element>
static void ScoreChunk(const AttentionChunk& c, BlockRange range) {
  const int32_t end = range.end;
  int32_t position = range.begin;
  const bool few = c.rows <= kFewRows && c.cache.key_layout == KeyLayout::kPairs;
  if (few && c.rows > kTileRows) {
    constexpr int kBlocks = kTileBlocks / 2;
    for (; position + kBlocks * kBlockKeys <= end; position += kBlocks * kBlockKeys)
      ScoreBlocks<Element, kBlocks>(c, range, position);
  }
  for (; position + kTileBlocks * kBlockKeys <= end; position += kTileBlocks * kBlockKeys)
    ScoreBlocks<Element, kTileBlocks>(c, range, position);
  // Blocks together are faster than one by one: their sums wait for each other less.
  static_assert(kTileBlocks == 2 || kTileBlocks == 4);
  switch ((end - position) / kBlockKeys) {
    case 1:
      return ScoreBlocks<Element, 1>(c, range, position);
    case 2:
      if constexpr (kTileBlocks > 2) ScoreBlocks<Element, 2>(c, range, position);
      return;
    case 3:
      if constexpr (kTileBlocks > 3) ScoreBlocks<Element, 3>(c, range, position);
      return;
    default:
      return;
  }
}

}  // namespace nibble::kernels::NIBBLE_ISA
