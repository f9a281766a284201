// attention_chunk.h over simd.h.
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

// kNativeLanes keys of 2 * kNativeLanes elements, transposed, to out (d, 16). Pairs travel as
// dwords through one transposition and part afterwards.
template <typename Element>
NIBBLE_SIMD void TransposePairs(const Element* keys, int64_t head_dim, float* out) {
  NativeI square[kNativeLanes];
  for (int r = 0; r < kNativeLanes; ++r) square[r] = NativeLoadPairs(keys + r * head_dim);
  NativeTranspose(square);
  for (int c = 0; c < kNativeLanes; ++c) {
    NativeStoreF32(out + 2 * c * kBlockKeys, FirstOfPairs(square[c]));
    NativeStoreF32(out + (2 * c + 1) * kBlockKeys, SecondOfPairs(square[c]));
  }
}

// One block of keys (16, Dh) to out (Dh, 16), widened: a score then needs no horizontal sum.
template <typename Element>
static void TransposeKeys(const Element* keys, int64_t head_dim, float* out) {
  constexpr int64_t kWidth = 2 * kNativeLanes;
  int64_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth)
    for (int row = 0; row < kBlockKeys; row += kNativeLanes)
      TransposePairs(keys + row * head_dim + d, head_dim, out + d * kBlockKeys + row);
  for (; d < head_dim; d += kLanes) {
    const int n = static_cast<int>(head_dim - d < kLanes ? head_dim - d : kLanes);
    for (int row = 0; row < kBlockKeys; ++row) {
      float tail[kLanes];
      StoreF32(tail, LoadElement(keys + row * head_dim + d, Tail{n}));
      for (int i = 0; i < n; ++i) out[(d + i) * kBlockKeys + row] = tail[i];
    }
  }
}

// The same from a block of KeyLayout::kPairs, (Dh / 2, 16, 2).
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

// Blocks of keys that were widened beforehand, (Dh, 16) each.
struct WideKeys {
  static constexpr int kStep = 2;  // elements that a round of ScoreTile takes

  const float* data;
  int64_t stride;  // between blocks

  Pairs Load(int block, int64_t d, int /*step*/) const {
    const float* at = data + block * stride + d * kBlockKeys;
    return {LoadF32(at), LoadF32(at + kBlockKeys)};
  }
};

// Blocks of KeyLayout::kPairs, read where they lie.
template <typename Element, int kBlocks>
struct KeyPairs {
  static constexpr int kStep = 2;

  const Element* data[kBlocks];
  const std::byte* ahead[kBlocks];

  Pairs Load(int block, int64_t d, int /*step*/) const {
    const Element* at = data[block] + d * kBlockKeys;
    PrefetchLike(at, data[block], ahead[block]);
    return LoadPairs(at);
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

// scores[r][0, 16 kBlocks) = scale * q[r] . keys, for kRows rows.
template <int kRows, int kBlocks, typename Keys>
NIBBLE_SIMD void ScoreTile(const float* q, const Keys& keys, int64_t head_dim, F32 scale,
                           float* scores) {
  F32 sums[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = Set(0.0f);
  const auto add = [&](int r, int b, int64_t d, F32 key) {
    sums[r][b] = Fma(Set(q[r * head_dim + d]), key, sums[r][b]);
  };
  for (int64_t round = 0; round + Keys::kStep <= head_dim; round += Keys::kStep) {
    for (int step = 0; step < Keys::kStep; step += 2) {
      const int64_t d = round + step;
      Pairs key[kBlocks];
      for (int b = 0; b < kBlocks; ++b) key[b] = keys.Load(b, round, step);
      for (int r = 0; r < kRows; ++r)
        for (int b = 0; b < kBlocks; ++b) add(r, b, d, key[b].even);
      for (int r = 0; r < kRows; ++r)
        for (int b = 0; b < kBlocks; ++b) add(r, b, d + 1, key[b].odd);
    }
  }
  if (head_dim % 2 != 0)
    for (int r = 0; r < kRows; ++r)
      for (int b = 0; b < kBlocks; ++b) add(r, b, head_dim - 1, keys.Load(b, head_dim - 1, 0).even);
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

template <int kBlocks, typename Keys>
static void ScoreRows(const AttentionChunk& c, const Keys& keys, int32_t position) {
  const int64_t head_dim = c.cache.head_dim;
  constexpr bool kTall = kBlocks <= kTileBlocks / 2 && !std::is_same_v<Keys, WideKeys>;
  ForRowTiles<kTall ? kTallTileRows : kTileRows>(c.rows, [&]<int kRows>(int64_t r) {
    // Rows are in order of position. Scores that no row of the tile looks at are never read.
    if (c.last[r + kRows - 1] < position || c.first[r] >= position + kBlocks * kBlockKeys) return;
    ScoreTile<kRows, kBlocks>(c.q + r * head_dim, keys, head_dim, Set(c.scale),
                              c.scores + r * kChunkKeys + (position - c.begin));
  });
}

// kBlocks blocks from `position` on, of those up to `end`; meanwhile it asks for their values. Few
// rows read keys where they lie, or as FP16; many share keys that were widened once.
template <typename Element, int kBlocks>
static void ScoreBlocks(const AttentionChunk& c, int32_t position, int32_t end) {
  const int64_t head_dim = c.cache.head_dim;
  const bool pairs = c.cache.key_layout == KeyLayout::kPairs;
  KeyPairs<Element, kBlocks> keys;
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t at = position + b * kBlockKeys;
    keys.data[b] = reinterpret_cast<const Element*>(BlockAddress(c, c.cache.k, at));
    keys.ahead[b] = BlockAddress(c, c.cache.v, at);
  }
  const int64_t stride = PaddedHeadDim(head_dim) * kBlockKeys;
  if (pairs && c.rows <= kFewRows) {
    if constexpr (std::is_same_v<Element, uint16_t>) {
      return ScoreRows<kBlocks>(c, keys, position);
    } else if (HalvesFit(head_dim)) {
      auto* const data = reinterpret_cast<Half*>(c.keys);
      HalfKeys<kBlocks> halves{.data = data, .stride = stride, .ahead = {}};
      for (int b = 0; b < kBlocks; ++b) {
        const int32_t next = MinInt(position + (b + 1) * kBlockKeys, end - kBlockKeys);
        ToHalves(keys.data[b], reinterpret_cast<const Element*>(BlockAddress(c, c.cache.k, next)),
                 head_dim, data + b * stride);
        halves.ahead[b] = keys.ahead[b];
      }
      return ScoreRows<kBlocks>(c, halves, position);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    if (pairs)
      WidenKeyPairs(keys.data[b], head_dim, keys.ahead[b], c.keys + b * stride);
    else
      TransposeKeys(keys.data[b], head_dim, c.keys + b * stride);
  }
  ScoreRows<kBlocks>(c, WideKeys{c.keys, stride}, position);
}

template <typename Element>
static void ScoreChunk(const AttentionChunk& c, BlockRange range) {
  const int32_t end = range.end;
  int32_t position = range.begin;
  const bool few = c.rows <= kFewRows && c.cache.key_layout == KeyLayout::kPairs;
  if (few && c.rows > kTileRows) {
    constexpr int kBlocks = kTileBlocks / 2;
    for (; position + kBlocks * kBlockKeys <= end; position += kBlocks * kBlockKeys)
      ScoreBlocks<Element, kBlocks>(c, position, end);
  }
  for (; position + kTileBlocks * kBlockKeys <= end; position += kTileBlocks * kBlockKeys)
    ScoreBlocks<Element, kTileBlocks>(c, position, end);
  // Blocks together are faster than one by one: their sums wait for each other less.
  static_assert(kTileBlocks == 2 || kTileBlocks == 4);
  switch ((end - position) / kBlockKeys) {
    case 1:
      return ScoreBlocks<Element, 1>(c, position, end);
    case 2:
      if constexpr (kTileBlocks > 2) ScoreBlocks<Element, 2>(c, position, end);
      return;
    case 3:
      if constexpr (kTileBlocks > 3) ScoreBlocks<Element, 3>(c, position, end);
      return;
    default:
      return;
  }
}

// ---- Softmax of one row over the chunk ----

// The largest score of the row; scores become -inf where it must not look.
static float LargestScore(const AttentionChunk& c, int64_t row, BlockRange range) {
  float* scores = c.scores + row * kChunkKeys - c.begin;
  const F32 hidden = Set(-__builtin_inff());
  const I32 first = SetInt(c.first[row]);
  const I32 after = SetInt(c.last[row] + 1);
  F32 largest = hidden;
  for (int32_t position = range.begin; position < range.end; position += kBlockKeys) {
    F32 score = LoadF32(scores + position);
    if (position < c.first[row] || position + kBlockKeys - 1 > c.last[row]) {
      const I32 lane = AddInt(Iota(), SetInt(position));
      score = Select(LessInt(lane, after), Select(LessInt(lane, first), hidden, score), hidden);
      StoreF32(scores + position, score);
    }
    largest = Max(score, largest);
  }
  return Largest(largest);
}

// Scores become exp(score - m). Returns their sum.
static float WeighScores(const AttentionChunk& c, int64_t row, BlockRange range, float m) {
  float* scores = c.scores + row * kChunkKeys - c.begin;
  F32 sum = Set(0.0f);
  for (int32_t position = range.begin; position < range.end; position += kBlockKeys) {
    const F32 weight = ExpOfNonPositive(Sub(LoadF32(scores + position), Set(m)));
    StoreF32(scores + position, weight);
    sum = Add(sum, weight);
  }
  return Sum(sum);
}

// ---- Weighted values ----

template <typename Element>
static void WidenValues(const Element* values, int64_t head_dim, const std::byte* ahead,
                        float* out) {
  const int64_t padded = PaddedHeadDim(head_dim);
  for (int row = 0; row < kBlockKeys; ++row, values += head_dim, out += padded) {
    if (ValuesInPairs(head_dim)) {
      for (int64_t d = 0; d < head_dim; d += kPairElements) {
        PrefetchLike(values + d, values, ahead);
        const Pairs pairs = LoadPairs(values + d);
        StoreF32(out + d, pairs.even);
        StoreF32(out + d + kLanes, pairs.odd);
      }
    } else {
      ForEachVector(head_dim, [&](int64_t d, auto count) {
        StoreF32(out + d, LoadElement(values + d, count));
      });
    }
    ahead += head_dim * static_cast<int64_t>(sizeof(Element));
  }
}

// A block of values, widened beforehand (float, Half) or as it lies in the cache.
template <typename Value>
struct ValueBlock {
  // In the cache.
  static constexpr int64_t kElementBytes = std::is_same_v<Value, uint16_t> ? 2 : 1;

  const Value* data;
  int64_t stride;
  const std::byte* ahead;

  static int64_t Index(int64_t d) { return std::is_same_v<Value, Half> ? HalfIndex(d) : d; }
  ValueBlock From(int64_t d) const { return {data + Index(d), stride, ahead + d * kElementBytes}; }
  Pairs Load(int key, int64_t d) const {
    const Value* at = data + key * stride + Index(d);
    if constexpr (std::is_same_v<Value, float>) {
      return {LoadF32(at), LoadF32(at + kLanes)};
    } else {
      __builtin_prefetch(ahead + (key * stride + d) * kElementBytes, 0, 2);
      return LoadPairs(at);
    }
  }
};

// o[r] += sum over j in [begin, end) of weights[r][j] * values[j], for kRows rows and kPairCount
// vectors of pairs of the head.
template <int kRows, int kPairCount, typename Value>
NIBBLE_SIMD void ValueTile(const float* weights, const ValueBlock<Value>& values, int64_t padded,
                           int begin, int end, float* o) {
  Pairs sums[kRows][kPairCount];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPairCount; ++v) {
      const float* at = o + r * padded + v * kPairElements;
      sums[r][v] = {LoadF32(at), LoadF32(at + kLanes)};
    }
  for (int j = begin; j < end; ++j) {
    Pairs value[kPairCount];
    for (int v = 0; v < kPairCount; ++v) value[v] = values.Load(j, v * kPairElements);
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = Set(weights[r * kChunkKeys + j]);
      for (int v = 0; v < kPairCount; ++v) {
        sums[r][v].even = Fma(weight, value[v].even, sums[r][v].even);
        sums[r][v].odd = Fma(weight, value[v].odd, sums[r][v].odd);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPairCount; ++v) {
      float* at = o + r * padded + v * kPairElements;
      StoreF32(at, sums[r][v].even);
      StoreF32(at + kLanes, sums[r][v].odd);
    }
}

// The last vector of a head whose padded width is an odd number of vectors.
template <int kRows>
NIBBLE_SIMD void LastValueVector(const float* weights, const ValueBlock<float>& values,
                                 int64_t padded, int begin, int end, float* o) {
  for (int r = 0; r < kRows; ++r) {
    F32 sum = LoadF32(o + r * padded);
    for (int j = begin; j < end; ++j)
      sum = Fma(Set(weights[r * kChunkKeys + j]), LoadF32(values.data + j * values.stride), sum);
    StoreF32(o + r * padded, sum);
  }
}

template <int kRows, typename Value>
static void ValueRows(const float* weights, const ValueBlock<Value>& values, int64_t padded,
                      int begin, int end, float* o) {
  constexpr int kWidth = kRows > kTileRows ? kTilePairs / 2 : kTilePairs;
  constexpr int64_t kTile = kWidth * kPairElements;
  int64_t d = 0;
  for (; d + kTile <= padded; d += kTile)
    ValueTile<kRows, kWidth>(weights, values.From(d), padded, begin, end, o + d);
  for (; d + kPairElements <= padded; d += kPairElements)
    ValueTile<kRows, 1>(weights, values.From(d), padded, begin, end, o + d);
  if constexpr (std::is_same_v<Value, float>)
    if (d < padded) LastValueVector<kRows>(weights, values.From(d), padded, begin, end, o + d);
}

// The values of `count` positions for all rows. A row adds its visible keys only: a hidden value
// may be anything. Rows that see the same keys share the values that they read.
template <typename Value>
static void AddValueBlock(const AttentionChunk& c, int32_t position, int32_t count,
                          const ValueBlock<Value>& values, const AttentionState& state) {
  const int64_t padded = PaddedHeadDim(c.cache.head_dim);
  const auto begin_of = [&](int64_t row) { return MaxInt(c.first[row] - position, 0); };
  const auto end_of = [&](int64_t row) { return MinInt(c.last[row] - position + 1, count); };
  constexpr bool kTall = kTallValues && !std::is_same_v<Value, float>;
  constexpr int kMost = kTall ? kTallTileRows : kTileRows;
  for (int64_t r = 0; r < c.rows;) {
    const int32_t begin = begin_of(r);
    const int32_t end = end_of(r);
    int64_t together = 1;
    while (together < kMost && r + together < c.rows && begin_of(r + together) == begin &&
           end_of(r + together) == end)
      ++together;
    if (begin < end)
      ForRowTiles<kMost>(together, [&]<int kRows>(int64_t) {
        ValueRows<kRows>(c.scores + r * kChunkKeys + (position - c.begin), values, padded, begin,
                         end, state.o + r * padded);
      });
    r += together;
  }
}

// Where the keys lie that the thread reads when it has come from `position` to the next chunk; else
// `otherwise`.
NIBBLE_SIMD const std::byte* NextKeys(const AttentionChunk& c, int32_t position,
                                      const std::byte* otherwise) {
  const int32_t next = c.ahead.begin + position % kChunkKeys;
  if (next > c.ahead.last) return otherwise;
  return BlockAddress(c.cache, c.cache.k, c.ahead.page_table, c.ahead.kv_head, next);
}

// Few rows widen the values of the block at `position` on the way, FP8 as FP16; `end`: of the
// blocks. Meanwhile they ask for the keys that come next.
template <typename Element>
static void AddFewRows(const AttentionChunk& c, int32_t position, int32_t end,
                       const AttentionState& state) {
  const int64_t head_dim = c.cache.head_dim;
  const std::byte* block = BlockAddress(c, c.cache.v, position);
  const auto* values = reinterpret_cast<const Element*>(block);
  const std::byte* ahead = NextKeys(c, position, block);
  if constexpr (std::is_same_v<Element, uint16_t>) {
    AddValueBlock(c, position, kBlockKeys, ValueBlock<Element>{values, head_dim, ahead}, state);
  } else {
    auto* const halves = reinterpret_cast<Half*>(c.values);
    const int32_t following = MinInt(position + kBlockKeys, end - kBlockKeys);
    const std::byte* next = BlockAddress(c, c.cache.v, following);
    ToHalves(values, reinterpret_cast<const Element*>(next), head_dim, halves);
    AddValueBlock(c, position, kBlockKeys, ValueBlock<Half>{halves, head_dim, ahead}, state);
  }
}

template <typename Element>
NIBBLE_SIMD bool TakesFewRows(const AttentionChunk& c) {
  return c.rows <= kFewRows && ValuesInPairs(c.cache.head_dim) &&
         (std::is_same_v<Element, uint16_t> || HalvesFit(c.cache.head_dim));
}

// Whether every row sees all of positions [begin, end).
NIBBLE_SIMD bool AllSee(const AttentionChunk& c, int32_t begin, int32_t end) {
  for (int64_t r = 0; r < c.rows; ++r)
    if (c.first[r] > begin || c.last[r] < end - 1) return false;
  return true;
}

// Many rows share values that were widened once: of several blocks where all rows see them, so that
// sums travel between registers and memory less often.
template <typename Element>
static void AddManyRows(const AttentionChunk& c, BlockRange range, const AttentionState& state) {
  const int64_t head_dim = c.cache.head_dim;
  const int64_t padded = PaddedHeadDim(head_dim);
  constexpr int32_t kTogether = kMaxTileBlocks * kBlockKeys;
  for (int32_t position = range.begin; position < range.end;) {
    const bool together =
        position + kTogether <= range.end && AllSee(c, position, position + kTogether);
    const int32_t count = together ? kTogether : kBlockKeys;
    for (int32_t at = 0; at < count; at += kBlockKeys) {
      const std::byte* block = BlockAddress(c, c.cache.v, position + at);
      WidenValues(reinterpret_cast<const Element*>(block), head_dim,
                  NextKeys(c, position + at, block), c.values + at * padded);
    }
    AddValueBlock(c, position, count,
                  ValueBlock<float>{c.values, padded, reinterpret_cast<std::byte*>(c.values)},
                  state);
    position += count;
  }
}

template <typename Element>
static void AttendChunkOf(const AttentionChunk& c, const AttentionState& state) {
  const int64_t padded = PaddedHeadDim(c.cache.head_dim);
  const BlockRange range = VisibleBlocks(c, 0, c.rows);
  if (range.begin < range.end) ScoreChunk<Element>(c, range);
  std::memset(state.o, 0, static_cast<size_t>(c.rows * padded) * sizeof(float));
  // In two rounds, so that a row's exponentials need not wait for its largest score.
  for (int64_t r = 0; r < c.rows; ++r) {
    const BlockRange own = VisibleBlocks(c, r, r + 1);
    state.m[r] = own.begin < own.end ? LargestScore(c, r, own) : -__builtin_inff();
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    const BlockRange own = VisibleBlocks(c, r, r + 1);
    state.l[r] = own.begin < own.end ? WeighScores(c, r, own, state.m[r]) : 0.0f;
  }
  if (!TakesFewRows<Element>(c)) return AddManyRows<Element>(c, range, state);
  for (int32_t position = range.begin; position < range.end; position += kBlockKeys)
    AddFewRows<Element>(c, position, range.end, state);
}

static void AttendChunk(const AttentionChunk& chunk, const AttentionState& state) {
  if (chunk.cache.format == KvFormat::kBf16)
    AttendChunkOf<uint16_t>(chunk, state);
  else
    AttendChunkOf<uint8_t>(chunk, state);
}

// ---- Chunks together ----

NIBBLE_SIMD float ExpOfNonPositive1(float x) { return FirstLane(ExpOfNonPositive(Set(x))); }

// Adds `from` to `into`, row by row; a row of `from` that saw no key changes nothing, and one of
// `into` becomes a copy, so that it makes no difference whether a first chunk was merged.
static void MergeState(const AttentionState& from, const AttentionState& into, int64_t rows,
                       int64_t head_dim) {
  const int64_t padded = PaddedHeadDim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (from.l[r] == 0.0f) continue;
    if (into.l[r] == 0.0f) {
      into.m[r] = from.m[r];
      into.l[r] = from.l[r];
      std::memcpy(into.o + r * padded, from.o + r * padded,
                  static_cast<size_t>(padded) * sizeof(float));
      continue;
    }
    const float m = into.m[r] > from.m[r] ? into.m[r] : from.m[r];
    const float keep = ExpOfNonPositive1(into.m[r] - m);
    const float add = ExpOfNonPositive1(from.m[r] - m);
    into.m[r] = m;
    into.l[r] = into.l[r] * keep + from.l[r] * add;
    float* o = into.o + r * padded;
    for (int64_t d = 0; d < padded; d += kLanes)
      StoreF32(o + d,
               Fma(LoadF32(from.o + r * padded + d), Set(add), Mul(LoadF32(o + d), Set(keep))));
  }
}

// out (Dh) = o / l * value_scale; a sink adds to l alone.
static void FinishRow(const AttentionState& state, int64_t row, int64_t head_dim, const float* sink,
                      float value_scale, uint16_t* out) {
  float keep = 1.0f;
  float l = state.l[row];
  if (sink != nullptr) {
    const float m = state.m[row] > *sink ? state.m[row] : *sink;
    keep = ExpOfNonPositive1(state.m[row] - m);
    l = l * keep + ExpOfNonPositive1(*sink - m);
  }
  const float* o = state.o + row * PaddedHeadDim(head_dim);
  const auto value_at = [&](int64_t d) {
    return Mul(Div(Mul(LoadF32(o + d), Set(keep)), Set(l)), Set(value_scale));
  };
  if (ValuesInPairs(head_dim)) {
    for (int64_t d = 0; d < head_dim; d += kPairElements)
      StoreBf16Pairs(out + d, value_at(d), value_at(d + kLanes));
    return;
  }
  ForEachVector(head_dim, [&](int64_t d, auto count) { StoreBf16(out + d, value_at(d), count); });
}

static void WidenRow(const uint16_t* in, int64_t n, float* out) {
  ForEachVector(n,
                [&](int64_t i, auto count) { StoreF32(out + i, LoadBf16(in + i, count), count); });
}

}  // namespace nibble::kernels::NIBBLE_ISA
