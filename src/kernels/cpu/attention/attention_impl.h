// attention_chunk.h over simd.h: softmax, weighted values, and chunks together.
#pragma once

#include "kernels/cpu/attention/attention_scores_impl.h"

namespace nibble::kernels::NIBBLE_ISA {

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

// Blocks of values (16, stride), widened beforehand (float, Half) or as they lie in the cache.
template <typename Value>
struct ValueBlocks {
  // In the cache.
  static constexpr int kElementBytes = std::is_same_v<Value, uint16_t> ? 2 : 1;

  int64_t stride;
  const Value* data[kMaxTileBlocks];
  // What to ask for meanwhile: as much of each as the values are in the cache.
  const std::byte* ahead[kMaxTileBlocks];
  const std::byte* keys_ahead[kMaxTileBlocks];  // where scores ask for half of them

  Pairs Load(int block, int key, int64_t d) const {
    const int64_t at = key * stride;
    if constexpr (std::is_same_v<Value, float>) {
      return {LoadF32(data[block] + at + d), LoadF32(data[block] + at + d + kLanes)};
    } else {
      __builtin_prefetch(ahead[block] + (at + d) * kElementBytes, 0, 2);
      if constexpr (kMultipliesPairs)
        __builtin_prefetch(keys_ahead[block] + (at + d) * kElementBytes, 0, 2);
      if constexpr (std::is_same_v<Value, Half>) d = HalfIndex(d);
      return LoadPairs(data[block] + at + d);
    }
  }
};

// fn(block, key in the block, key) for the keys [begin, end) of blocks.
template <typename Fn>
NIBBLE_SIMD void ForKeysOfBlocks(int begin, int end, Fn&& fn) {
  for (int j = begin; j < end;) {
    const int block = j / kBlockKeys;
    const int stop = MinInt(end, (block + 1) * kBlockKeys);
    for (; j < stop; ++j) fn(block, j - block * kBlockKeys, j);
  }
}

// o[r][d ...] += sum over j in [begin, end) of weights[r][j] * values[j], for kRows rows and
// kPairCount vectors of pairs of the head.
template <int kRows, int kPairCount, typename Value>
NIBBLE_SIMD void ValueTile(const float* weights, const ValueBlocks<Value>& values, int64_t d,
                           int64_t padded, int begin, int end, float* o) {
  Pairs sums[kRows][kPairCount];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPairCount; ++v) {
      const float* at = o + r * padded + d + v * kPairElements;
      sums[r][v] = {LoadF32(at), LoadF32(at + kLanes)};
    }
  ForKeysOfBlocks(begin, end, [&](int block, int key, int j) {
    Pairs value[kPairCount];
    for (int v = 0; v < kPairCount; ++v) value[v] = values.Load(block, key, d + v * kPairElements);
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = Set(weights[r * kChunkKeys + j]);
      for (int v = 0; v < kPairCount; ++v) {
        sums[r][v].even = Fma(weight, value[v].even, sums[r][v].even);
        sums[r][v].odd = Fma(weight, value[v].odd, sums[r][v].odd);
      }
    }
  });
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPairCount; ++v) {
      float* at = o + r * padded + d + v * kPairElements;
      StoreF32(at, sums[r][v].even);
      StoreF32(at + kLanes, sums[r][v].odd);
    }
}

// The last vector of a head whose padded width is an odd number of vectors.
template <int kRows>
NIBBLE_SIMD void LastValueVector(const float* weights, const ValueBlocks<float>& values, int64_t d,
                                 int64_t padded, int begin, int end, float* o) {
  for (int r = 0; r < kRows; ++r) {
    F32 sum = LoadF32(o + r * padded + d);
    ForKeysOfBlocks(begin, end, [&](int block, int key, int j) {
      const float* value = values.data[block] + key * values.stride + d;
      sum = Fma(Set(weights[r * kChunkKeys + j]), LoadF32(value), sum);
    });
    StoreF32(o + r * padded + d, sum);
  }
}

template <int kRows, typename Value>
static void ValueRows(const float* weights, const ValueBlocks<Value>& values, int64_t padded,
                      int begin, int end, float* o) {
  constexpr int kWidth = kRows > kTileRows ? kTilePairs / 2 : kTilePairs;
  constexpr int64_t kTile = kWidth * kPairElements;
  int64_t d = 0;
  for (; d + kTile <= padded; d += kTile)
    ValueTile<kRows, kWidth>(weights, values, d, padded, begin, end, o);
  for (; d + kPairElements <= padded; d += kPairElements)
    ValueTile<kRows, 1>(weights, values, d, padded, begin, end, o);
  if constexpr (std::is_same_v<Value, float>)
    if (d < padded) LastValueVector<kRows>(weights, values, d, padded, begin, end, o);
}

// The values of `count` positions for all rows. A row adds its visible keys only: a hidden value
// may be anything. Rows that see the same keys share the values that they read.
template <typename Value>
static void AddValueBlocks(const AttentionChunk& c, int32_t position, int32_t count,
                           const ValueBlocks<Value>& values, const AttentionState& state) {
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

// Few rows widen the values of `count` blocks from `position` on, of those in `range`, on the way,
// FP8 as FP16. Meanwhile they ask for the values of the next chunk, and for the keys that scores
// did not ask for.
template <typename Element>
static void AddFewRows(const AttentionChunk& c, BlockRange range, int32_t position, int count,
                       const AttentionState& state) {
  constexpr bool kInPlace = std::is_same_v<Element, uint16_t>;
  const int64_t head_dim = c.cache.head_dim;
  const int32_t last = range.end - kBlockKeys;
  ValueBlocks<std::conditional_t<kInPlace, Element, Half>> values = {.stride = head_dim};
  for (int b = 0; b < count; ++b) {
    const int32_t at = position + b * kBlockKeys;
    const std::byte* block = BlockAddress(c, c.cache.v, at);
    values.ahead[b] = NextBlock(c, c.cache.v, at - range.begin, block);
    values.keys_ahead[b] = NextBlock(c, c.cache.k, at - range.begin + HalfOf(range), block);
    const auto* elements = reinterpret_cast<const Element*>(block);
    if constexpr (kInPlace) {
      values.data[b] = elements;
    } else {
      Half* halves = reinterpret_cast<Half*>(c.values) + b * kBlockKeys * head_dim;
      const std::byte* next = BlockAddress(c, c.cache.v, MinInt(at + kBlockKeys, last));
      ToHalves(elements, reinterpret_cast<const Element*>(next), head_dim, halves);
      values.data[b] = halves;
    }
  }
  AddValueBlocks(c, position, count * kBlockKeys, values, state);
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

// Many rows share values that were widened once, from `position` on.
template <typename Element>
static void AddManyRows(const AttentionChunk& c, BlockRange range, int32_t position, int count,
                        const AttentionState& state) {
  const int64_t head_dim = c.cache.head_dim;
  const int64_t padded = PaddedHeadDim(head_dim);
  ValueBlocks<float> values = {.stride = padded};
  for (int b = 0; b < count; ++b) {
    const int32_t at = position + b * kBlockKeys;
    float* wide = c.values + b * kBlockKeys * padded;
    const std::byte* block = BlockAddress(c, c.cache.v, at);
    WidenValues(reinterpret_cast<const Element*>(block), head_dim,
                NextBlock(c, c.cache.v, at - range.begin, block), wide);
    values.data[b] = wide;
  }
  AddValueBlocks(c, position, count * kBlockKeys, values, state);
}

// Several blocks at a time where all rows see them, so that sums travel between registers and
// memory less often.
template <typename Element>
static void AddValues(const AttentionChunk& c, BlockRange range, const AttentionState& state) {
  constexpr int32_t kTogether = kMaxTileBlocks * kBlockKeys;
  const bool few = TakesFewRows<Element>(c);
  for (int32_t position = range.begin; position < range.end;) {
    const bool together =
        position + kTogether <= range.end && AllSee(c, position, position + kTogether);
    const int count = together ? kMaxTileBlocks : 1;
    if (few)
      AddFewRows<Element>(c, range, position, count, state);
    else
      AddManyRows<Element>(c, range, position, count, state);
    position += count * kBlockKeys;
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
  AddValues<Element>(c, range, state);
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

NIBBLE_SIMD void CopyQueriesTo(const uint16_t* in, int64_t rows, int64_t head_dim, float* to) {
  ForEachVector(rows * head_dim,
                [&](int64_t i, auto count) { StoreF32(to + i, LoadBf16(in + i, count), count); });
}
NIBBLE_SIMD void CopyQueriesTo(const uint16_t* in, int64_t rows, int64_t head_dim, uint16_t* to) {
  const int64_t stride = QueryStride(head_dim);
  for (int64_t r = 0; r < rows; ++r, in += head_dim, to += stride) {
    std::memcpy(to, in, static_cast<size_t>(head_dim) * sizeof *in);
    if (stride > head_dim) to[head_dim] = 0;
  }
}
static void CopyQueries(const uint16_t* in, int64_t first, int64_t rows, int64_t head_dim,
                        float* out) {
  CopyQueriesTo(in, rows, head_dim,
                reinterpret_cast<ScoreElement*>(out) + first * QueryStride(head_dim));
}

}  // namespace nibble::kernels::NIBBLE_ISA
