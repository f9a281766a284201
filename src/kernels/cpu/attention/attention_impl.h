// attention_chunk.h over simd.h.
#pragma once

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
NIBBLE_SIMD const std::byte* BlockAddress(const AttentionChunk& c, const std::byte* base,
                                          int32_t position) {
  const int64_t page = c.page_table[position / c.cache.page_size];
  const int64_t row =
      (page * c.cache.kv_heads + c.kv_head) * c.cache.page_size + position % c.cache.page_size;
  const int64_t element_bytes = c.cache.format == KvFormat::kBf16 ? 2 : 1;
  return base + row * c.cache.head_dim * element_bytes;
}

template <typename Count = Full>
NIBBLE_SIMD F32 LoadElement(const uint16_t* p, Count count = {}) {
  return LoadBf16(p, count);
}
template <typename Count = Full>
NIBBLE_SIMD F32 LoadElement(const uint8_t* p, Count count = {}) {
  return LoadE4M3(p, count);
}

NIBBLE_SIMD NativeI NativeLoadPairs(const uint16_t* p) {
  return NativeLoadI32(reinterpret_cast<const int32_t*>(p));
}
NIBBLE_SIMD NativeI NativeLoadPairs(const uint8_t* p) { return NativeLoadE4M3Pairs(p); }

constexpr int64_t kPairLanes = 2 * kNativeLanes;

// kNativeLanes keys of kPairLanes elements, transposed, to out (d, 16). Pairs of BF16 travel as
// dwords through one transposition and part afterwards.
template <typename Element>
NIBBLE_SIMD void TransposePairs(const Element* keys, int64_t head_dim, float* out) {
  NativeI square[kNativeLanes];
  for (int r = 0; r < kNativeLanes; ++r) square[r] = NativeLoadPairs(keys + r * head_dim);
  NativeTranspose(square);
  for (int c = 0; c < kNativeLanes; ++c) {
    const NativeI odd = NativeAnd(square[c], NativeSetInt(static_cast<int32_t>(0xFFFF0000u)));
    NativeStoreF32(out + 2 * c * kBlockKeys, NativeFromBits(NativeShiftLeft<16>(square[c])));
    NativeStoreF32(out + (2 * c + 1) * kBlockKeys, NativeFromBits(odd));
  }
}

// One block of keys (16, Dh) to out (Dh, 16), widened: a score then needs no horizontal sum.
template <typename Element>
static void TransposeKeys(const Element* keys, int64_t head_dim, float* out) {
  int64_t d = 0;
  for (; d + kPairLanes <= head_dim; d += kPairLanes)
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

template <typename Element>
static void WidenValues(const Element* values, int64_t head_dim, float* out) {
  const int64_t padded = PaddedHeadDim(head_dim);
  for (int row = 0; row < kBlockKeys; ++row)
    ForEachVector(head_dim, [&](int64_t d, auto count) {
      StoreF32(out + row * padded + d, LoadElement(values + row * head_dim + d, count));
    });
}

// ---- Scores ----

// scores[r][0, 16 kBlocks) = scale * q[r] . keys, for kRows rows.
template <int kRows, int kBlocks>
NIBBLE_SIMD void ScoreTile(const float* q, const float* keys, int64_t head_dim,
                           int64_t block_stride, F32 scale, float* scores) {
  F32 sums[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = Set(0.0f);
  for (int64_t d = 0; d < head_dim; ++d) {
    F32 key[kBlocks];
    for (int b = 0; b < kBlocks; ++b) key[b] = LoadF32(keys + b * block_stride + d * kBlockKeys);
    for (int r = 0; r < kRows; ++r) {
      const F32 element = Set(q[r * head_dim + d]);
      for (int b = 0; b < kBlocks; ++b) sums[r][b] = Fma(element, key[b], sums[r][b]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b)
      StoreF32(scores + r * kChunkKeys + b * kBlockKeys, Mul(sums[r][b], scale));
}

template <int kBlocks>
static void ScoreRows(const AttentionChunk& c, float* scores) {
  const int64_t head_dim = c.cache.head_dim;
  const int64_t stride = PaddedHeadDim(head_dim) * kBlockKeys;
  const F32 scale = Set(c.scale);
  int64_t r = 0;
  for (; r + kTileRows <= c.rows; r += kTileRows)
    ScoreTile<kTileRows, kBlocks>(c.q + r * head_dim, c.keys, head_dim, stride, scale,
                                  scores + r * kChunkKeys);
  const auto rest = [&]<int kRows>() {
    ScoreTile<kRows, kBlocks>(c.q + r * head_dim, c.keys, head_dim, stride, scale,
                              scores + r * kChunkKeys);
  };
  switch (c.rows - r) {
    case 1:
      return rest.template operator()<1>();
    case 2:
      return rest.template operator()<2>();
    case 3:
      return rest.template operator()<3>();
    default:
      return;
  }
}

// Asks for one block: the hardware does not see the next one coming, as pages lie apart.
static void PrefetchBlock(const AttentionChunk& c, const std::byte* base, int32_t position) {
  const int64_t element_bytes = c.cache.format == KvFormat::kBf16 ? 2 : 1;
  const int64_t bytes = kBlockKeys * c.cache.head_dim * element_bytes;
  const std::byte* block = BlockAddress(c, base, position);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(block + at, 0, 2);
}

// While it scores a block it asks for the block's values.
template <typename Element>
static void ScoreChunk(const AttentionChunk& c, BlockRange range) {
  const int64_t head_dim = c.cache.head_dim;
  const int64_t stride = PaddedHeadDim(head_dim) * kBlockKeys;
  const auto load = [&](int32_t position, float* out) {
    PrefetchBlock(c, c.cache.v, position);
    TransposeKeys(reinterpret_cast<const Element*>(BlockAddress(c, c.cache.k, position)), head_dim,
                  out);
  };
  int32_t position = range.begin;
  for (; position + 2 * kBlockKeys <= range.end; position += 2 * kBlockKeys) {
    load(position, c.keys);
    load(position + kBlockKeys, c.keys + stride);
    ScoreRows<2>(c, c.scores + (position - c.begin));
  }
  if (position < range.end) {
    load(position, c.keys);
    ScoreRows<1>(c, c.scores + (position - c.begin));
  }
}

// ---- Softmax of one row over the chunk ----

// Scores become exp(score - m), 0 where the row must not look; m and l of the row are set.
static void SoftmaxRow(const AttentionChunk& c, int64_t row, BlockRange range, float* m, float* l) {
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
  *m = Largest(largest);
  F32 sum = Set(0.0f);
  for (int32_t position = range.begin; position < range.end; position += kBlockKeys) {
    const F32 weight = ExpOfNonPositive(Sub(LoadF32(scores + position), Set(*m)));
    StoreF32(scores + position, weight);
    sum = Add(sum, weight);
  }
  *l = Sum(sum);
}

// ---- Weighted values ----

// A block of values, widened beforehand (float) or as it lies in the cache.
template <typename Value>
struct ValueBlock {
  const Value* data;
  int64_t stride;
};
NIBBLE_SIMD F32 LoadElement(const float* p) { return LoadF32(p); }

// o[r] += sum over j in [begin, end) of weights[r][j] * values[j], for kRows rows and kVectors
// vectors of the head.
template <int kRows, int kVectors, typename Value>
NIBBLE_SIMD void ValueTile(const float* weights, ValueBlock<Value> values, int64_t padded,
                           int begin, int end, float* o) {
  F32 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = LoadF32(o + r * padded + v * kLanes);
  for (int j = begin; j < end; ++j) {
    F32 value[kVectors];
    for (int v = 0; v < kVectors; ++v)
      value[v] = LoadElement(values.data + j * values.stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = Set(weights[r * kChunkKeys + j]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Fma(weight, value[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) StoreF32(o + r * padded + v * kLanes, sums[r][v]);
}

template <int kRows, typename Value>
static void ValueRows(const float* weights, ValueBlock<Value> values, int64_t padded, int begin,
                      int end, float* o) {
  int64_t d = 0;
  for (; d + kTileVectors * kLanes <= padded; d += kTileVectors * kLanes)
    ValueTile<kRows, kTileVectors>(weights, ValueBlock<Value>{values.data + d, values.stride},
                                   padded, begin, end, o + d);
  for (; d < padded; d += kLanes)
    ValueTile<kRows, 1>(weights, ValueBlock<Value>{values.data + d, values.stride}, padded, begin,
                        end, o + d);
}

// One block for all rows. A row adds its visible keys only: a hidden value may be anything.
template <typename Value>
static void AddValueBlock(const AttentionChunk& c, int32_t position, ValueBlock<Value> values,
                          const AttentionState& state) {
  const int64_t padded = PaddedHeadDim(c.cache.head_dim);
  const auto sees_all = [&](int64_t row) {
    return c.first[row] <= position && position + kBlockKeys - 1 <= c.last[row];
  };
  for (int64_t r = 0; r < c.rows;) {
    int64_t together = 0;
    while (together < kTileRows && r + together < c.rows && sees_all(r + together)) ++together;
    const float* weights = c.scores + r * kChunkKeys + (position - c.begin);
    float* o = state.o + r * padded;
    switch (together) {
      case 4:
        ValueRows<4>(weights, values, padded, 0, kBlockKeys, o);
        break;
      case 3:
        ValueRows<3>(weights, values, padded, 0, kBlockKeys, o);
        break;
      case 2:
        ValueRows<2>(weights, values, padded, 0, kBlockKeys, o);
        break;
      default: {
        together = 1;
        const int32_t begin = MaxInt(c.first[r] - position, 0);
        const int32_t end = MinInt(c.last[r] - position + 1, kBlockKeys);
        if (begin < end) ValueRows<1>(weights, values, padded, begin, end, o);
      }
    }
    r += together;
  }
}

// Many rows share values that were widened once; few rows widen them on the way.
template <typename Element>
static void AddValues(const AttentionChunk& c, int32_t position, const AttentionState& state) {
  const int64_t head_dim = c.cache.head_dim;
  const auto* values = reinterpret_cast<const Element*>(BlockAddress(c, c.cache.v, position));
  if (c.rows <= kTileRows && head_dim % kLanes == 0)
    return AddValueBlock(c, position, ValueBlock<Element>{values, head_dim}, state);
  WidenValues(values, head_dim, c.values);
  AddValueBlock(c, position, ValueBlock<float>{c.values, PaddedHeadDim(head_dim)}, state);
}

template <typename Element>
static void AttendChunkOf(const AttentionChunk& c, const AttentionState& state) {
  const int64_t padded = PaddedHeadDim(c.cache.head_dim);
  const BlockRange range = VisibleBlocks(c, 0, c.rows);
  if (range.begin < range.end) ScoreChunk<Element>(c, range);
  for (int64_t r = 0; r < c.rows; ++r) {
    state.m[r] = -__builtin_inff();
    state.l[r] = 0.0f;
    std::memset(state.o + r * padded, 0, static_cast<size_t>(padded) * sizeof(float));
    const BlockRange own = VisibleBlocks(c, r, r + 1);
    if (own.begin < own.end) SoftmaxRow(c, r, own, &state.m[r], &state.l[r]);
  }
  const int32_t last = c.last[c.rows - 1];  // rows are in order of position
  for (int32_t position = range.begin; position < range.end; position += kBlockKeys) {
    if (position + kChunkKeys <= last) PrefetchBlock(c, c.cache.k, position + kChunkKeys);
    AddValues<Element>(c, position, state);
  }
}

static void AttendChunk(const AttentionChunk& chunk, const AttentionState& state) {
  if (chunk.cache.format == KvFormat::kBf16)
    AttendChunkOf<uint16_t>(chunk, state);
  else
    AttendChunkOf<uint8_t>(chunk, state);
}

// ---- Chunks together ----

NIBBLE_SIMD float ExpOfNonPositive1(float x) {
  float lanes[kLanes];
  StoreF32(lanes, ExpOfNonPositive(Set(x)));
  return lanes[0];
}

// Adds `from` to `into`, row by row; a row of `from` that saw no key changes nothing.
static void MergeState(const AttentionState& from, const AttentionState& into, int64_t rows,
                       int64_t head_dim) {
  const int64_t padded = PaddedHeadDim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (from.l[r] == 0.0f) continue;
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
  ForEachVector(head_dim, [&](int64_t d, auto count) {
    const F32 value = Div(Mul(LoadF32(o + d), Set(keep)), Set(l));
    StoreBf16(out + d, Mul(value, Set(value_scale)), count);
  });
}

static void WidenRow(const uint16_t* in, int64_t n, float* out) {
  ForEachVector(n,
                [&](int64_t i, auto count) { StoreF32(out + i, LoadBf16(in + i, count), count); });
}

}  // namespace nibble::kernels::NIBBLE_ISA
