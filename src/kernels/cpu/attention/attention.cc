#include "kernels/cpu/attention/attention.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention/attention_chunk.h"
#include "kernels/cpu/parallel.h"
#include "kernels/nvfp4_cache.h"

namespace nibble::kernels::cpu {
namespace {

// Query rows (tokens times heads of one KV head) that share one pass over the keys. More rows reuse
// each widened key more often; their scores (1 KiB per row) should stay in the second-level cache.
constexpr int64_t kTargetRows = 128;

// With fewer tiles than this per thread, the threads share single chunks of keys instead: of all
// tiles, or, where tiles are alike, of those that are left when every thread has had as many.
constexpr int64_t kMinTilesPerThread = 4;

// Chunk results per thread that the workspace holds between two merges.
constexpr int64_t kChunksPerThread = 32;
constexpr int64_t kMaxPieces = 2048;

// Query rows of consecutive tokens of one sequence that share a KV head.
struct Tile {
  int64_t sequence;
  int32_t kv_head;
  int64_t token;  // first, in the batch
  int64_t tokens;
  int32_t position;  // of the first token
};

constexpr int64_t RoundUpToLine(int64_t floats) { return (floats + 15) / 16 * 16; }

// Hands out cache-line aligned pieces of the workspace.
class Arena {
 public:
  explicit Arena(float* memory) : next_(memory) {}
  float* Floats(int64_t n) {
    float* result = next_;
    next_ += RoundUpToLine(n);
    return result;
  }
  AttentionState State(int64_t rows, int64_t head_dim) {
    AttentionState state;
    state.o = Floats(rows * PaddedHeadDim(head_dim));
    state.m = Floats(rows);
    state.l = Floats(rows);
    return state;
  }

 private:
  float* next_;
};

int64_t StateFloats(int64_t rows, int64_t head_dim) {
  return rows * PaddedHeadDim(head_dim) + 2 * RoundUpToLine(rows);
}

// A chunk of keys, or of values, in BF16.
int64_t DecodedFloats(int64_t head_dim) { return RoundUpToLine(kChunkKeys * head_dim / 2); }

// Scratch of one thread: what PrepareTile and RunTile take from its arena.
int64_t ThreadFloats(int64_t rows, int64_t head_dim) {
  return RoundUpToLine(rows * head_dim) + 4 * RoundUpToLine(rows) + 2 * DecodedFloats(head_dim) +
         2 * kMaxTileBlocks * PaddedHeadDim(head_dim) * kBlockKeys + rows * kChunkKeys +
         2 * StateFloats(rows, head_dim);
}

class AttentionRun {
 public:
  AttentionRun(const VectorKernels& kernels, const OpContext& context,
               const AttentionParams& params)
      : kernels_(kernels),
        context_(context),
        p_(params),
        head_dim_(params.cache.head_dim),
        group_(params.q_heads / params.cache.kv_heads),
        tile_tokens_(std::max<int64_t>(1, kTargetRows / group_)),
        thread_floats_(ThreadFloats(tile_tokens_ * group_, head_dim_)) {
    for (int64_t b = 0; b < p_.sequences; ++b) {
      tiles_ += TilesOf(b);
      one_each_ = one_each_ && TilesOf(b) == p_.cache.kv_heads;
    }
  }

  void Run() {
    const int threads = Threads(context_);
    int64_t shared = 0;  // tiles whose chunks are: the first ones
    if (threads > 1 && tiles_ < kMinTilesPerThread * threads)
      shared = TilesAreAlike() ? tiles_ % threads : tiles_;
    // Later tiles of a prompt see more keys: the longest come first.
    ForEachItem(context_, tiles_ - shared, [&](int64_t item, int thread) {
      const int64_t tile = tiles_ - 1 - item;
      const AttentionAhead after =
          tile - threads >= shared ? Keys(TileAt(tile - threads)) : AttentionAhead();
      RunTile(TileAt(tile), after, ThreadArena(thread));
    });
    RunByChunk(shared);
  }

 private:
  int64_t TilesOf(int64_t b) const {
    const int64_t tokens = p_.q_start[b + 1] - p_.q_start[b];
    if (0 < tokens && tokens <= tile_tokens_) return p_.cache.kv_heads;  // soon: TileAt adds all
    return (tokens + tile_tokens_ - 1) / tile_tokens_ * p_.cache.kv_heads;
  }

  // Tiles are numbered by sequence, then by token, then by KV head.
  Tile TileAt(int64_t index) const {
    int64_t b = 0;
    if (one_each_) {
      b = index / p_.cache.kv_heads;
      index %= p_.cache.kv_heads;
    } else {
      for (; index >= TilesOf(b); ++b) index -= TilesOf(b);
    }
    const int64_t offset = index / p_.cache.kv_heads * tile_tokens_;
    const int64_t tokens = p_.q_start[b + 1] - p_.q_start[b];
    return {.sequence = b,
            .kv_head = static_cast<int32_t>(index % p_.cache.kv_heads),
            .token = p_.q_start[b] + offset,
            .tokens = std::min(tile_tokens_, tokens - offset),
            .position = static_cast<int32_t>(p_.kv_len[b] - tokens + offset)};
  }

  // Whether all take about equally long.
  bool TilesAreAlike() const {
    if (tiles_ == 0) return true;
    const auto chunks = [&](int64_t index) {
      const Tile tile = TileAt(index);
      return EndChunk(tile) - FirstChunk(tile);
    };
    for (int64_t i = 0; i < tiles_; i += p_.cache.kv_heads)
      if (chunks(i) != chunks(0)) return false;
    return true;
  }

  int32_t FirstVisible(int32_t position) const {
    const int32_t first = p_.window > 0 ? std::max(0, position - p_.window + 1) : 0;
    return p_.chunk > 0 ? std::max(first, position / p_.chunk * p_.chunk) : first;
  }
  int32_t FirstChunk(const Tile& tile) const { return FirstVisible(tile.position) / kChunkKeys; }
  int32_t EndChunk(const Tile& tile) const {
    return static_cast<int32_t>((tile.position + tile.tokens - 1) / kChunkKeys) + 1;
  }

  // The tile's keys from its chunk `c` on; without c from its first.
  AttentionAhead Keys(const Tile& tile, int32_t c) const {
    return {.page_table = p_.page_table + tile.sequence * p_.max_pages,
            .kv_head = tile.kv_head,
            .begin = c * kChunkKeys,
            .last = static_cast<int32_t>(tile.position + tile.tokens - 1)};
  }
  AttentionAhead Keys(const Tile& tile) const { return Keys(tile, FirstChunk(tile)); }

  Arena ThreadArena(int thread) const {
    return Arena(reinterpret_cast<float*>(context_.workspace) + thread * thread_floats_);
  }

  // Everything of the tile but the chunk's place and result.
  AttentionChunk PrepareTile(const Tile& tile, Arena& arena) const {
    const int64_t rows = tile.tokens * group_;
    float* q = arena.Floats(rows * head_dim_);
    auto* first = reinterpret_cast<int32_t*>(arena.Floats(rows));
    auto* last = reinterpret_cast<int32_t*>(arena.Floats(rows));
    for (int64_t i = 0; i < tile.tokens; ++i) {
      const int64_t head = (tile.token + i) * p_.q_heads + tile.kv_head * group_;
      kernels_.copy_queries(p_.q + head * head_dim_, i * group_, group_, head_dim_, q);
      const auto position = static_cast<int32_t>(tile.position + i);
      std::fill_n(first + i * group_, group_, FirstVisible(position));
      std::fill_n(last + i * group_, group_, position);
    }
    const float key_scale =
        p_.cache.format == KvFormat::kFp8 ? p_.cache.k_scale * kE4M3ReadScale : 1.0f;
    return {.q = q,
            .first = first,
            .last = last,
            .rows = rows,
            .scale = p_.scale * key_scale,
            .page_table = p_.page_table + tile.sequence * p_.max_pages,
            .kv_head = tile.kv_head,
            .cache = p_.cache,
            .keys = arena.Floats(kMaxTileBlocks * PaddedHeadDim(head_dim_) * kBlockKeys),
            .values = arena.Floats(kMaxTileBlocks * PaddedHeadDim(head_dim_) * kBlockKeys),
            .scores = arena.Floats(rows * kChunkKeys)};
  }

  // The chunk of keys from `begin` on.
  void Attend(AttentionChunk& chunk, int32_t begin, Arena arena, const AttentionState& out) const {
    chunk.begin = begin;
    if (p_.cache.format == KvFormat::kNvfp4) return AttendDecoded(chunk, arena, out);
    kernels_.attend_chunk(chunk, out);
  }

  // Of an NVFP4 cache: the visible rows of the chunk become one sequence of BF16 pages, which
  // begins at position 0. Borders of blocks and chunks stay what they are.
  void AttendDecoded(const AttentionChunk& chunk, Arena arena, const AttentionState& out) const {
    static constexpr int32_t kPages[kChunkKeys / 16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
    const KvLayerView& cache = p_.cache;
    auto* const keys = reinterpret_cast<uint16_t*>(arena.Floats(DecodedFloats(head_dim_)));
    auto* const values = cache.k == cache.v
                             ? keys
                             : reinterpret_cast<uint16_t*>(arena.Floats(DecodedFloats(head_dim_)));
    auto* const first = reinterpret_cast<int32_t*>(arena.Floats(chunk.rows));
    auto* const last = reinterpret_cast<int32_t*>(arena.Floats(chunk.rows));
    int32_t begin = kChunkKeys, end = 0;
    for (int64_t row = 0; row < chunk.rows; ++row) {
      first[row] = std::max(chunk.first[row] - chunk.begin, 0);
      last[row] = std::min(chunk.last[row] - chunk.begin, kChunkKeys - 1);
      if (first[row] > last[row]) continue;
      begin = std::min(begin, first[row]);
      end = std::max(end, last[row] + 1);
    }
    // Whole blocks are read.
    begin = begin / kBlockKeys * kBlockKeys;
    for (int32_t key = begin; key < (end + kBlockKeys - 1) / kBlockKeys * kBlockKeys; ++key) {
      const int32_t position = chunk.begin + key;
      const int64_t page = chunk.page_table[position / cache.page_size];
      const int64_t row =
          (page * cache.kv_heads + chunk.kv_head) * cache.page_size + position % cache.page_size;
      LoadNvfp4Row(cache, cache.k, row, keys + key * head_dim_);
      if (values != keys) LoadNvfp4Row(cache, cache.v, row, values + key * head_dim_);
    }
    AttentionChunk decoded = chunk;
    decoded.begin = 0;
    decoded.ahead = {};
    decoded.first = first;
    decoded.last = last;
    decoded.page_table = kPages;
    decoded.kv_head = 0;
    decoded.cache = {.k = reinterpret_cast<std::byte*>(keys),
                     .v = reinterpret_cast<std::byte*>(values),
                     .page_size = 16,
                     .kv_heads = 1,
                     .head_dim = cache.head_dim};
    kernels_.attend_chunk(decoded, out);
  }

  void ClearState(const AttentionState& state, int64_t rows) const {
    std::fill_n(state.m, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(state.l, rows, 0.0f);
    std::fill_n(state.o, rows * PaddedHeadDim(head_dim_), 0.0f);
  }

  void FinishTile(const Tile& tile, const AttentionState& state) const {
    const float value_scale =
        p_.cache.format == KvFormat::kFp8 ? p_.cache.v_scale * kE4M3ReadScale : 1.0f;
    for (int64_t row = 0; row < tile.tokens * group_; ++row) {
      const int64_t head = tile.kv_head * group_ + row % group_;
      const int64_t at = (tile.token + row / group_) * p_.q_heads + head;
      kernels_.finish_row(state, row, head_dim_, p_.sinks != nullptr ? p_.sinks + head : nullptr,
                          value_scale, p_.out + at * head_dim_);
    }
  }

  // after: what the thread is going to read then.
  void RunTile(const Tile& tile, const AttentionAhead& after, Arena arena) const {
    AttentionChunk chunk = PrepareTile(tile, arena);
    const AttentionState part = arena.State(chunk.rows, head_dim_);
    const AttentionState sum = arena.State(chunk.rows, head_dim_);
    const int32_t first = FirstChunk(tile);
    for (int32_t c = first; c < EndChunk(tile); ++c) {
      chunk.ahead = c + 1 < EndChunk(tile) ? Keys(tile, c + 1) : after;
      Attend(chunk, c * kChunkKeys, arena, c == first ? sum : part);
      if (c > first) kernels_.merge_state(part, sum, chunk.rows, head_dim_);
    }
    FinishTile(tile, sum);
  }

  void RunByChunk(int64_t tiles) const;

  const VectorKernels& kernels_;
  const OpContext& context_;
  const AttentionParams& p_;
  const int64_t head_dim_;
  const int64_t group_;  // query heads per KV head
  const int64_t tile_tokens_;
  const int64_t thread_floats_;
  int64_t tiles_ = 0;
  bool one_each_ = true;  // per sequence and KV head
};

// The first tiles: their chunks in rounds of as many results as the workspace holds; after each
// round every tile merges its chunks in order.
void AttentionRun::RunByChunk(int64_t tiles) const {
  if (tiles == 0) return;
  const int threads = Threads(context_);
  const int64_t rows = tile_tokens_ * group_;
  const int64_t slot_floats = StateFloats(rows, head_dim_);
  const int64_t capacity = std::min(threads * kChunksPerThread, kMaxPieces);
  Arena arena(reinterpret_cast<float*>(context_.workspace) + threads * thread_floats_);
  float* sums = arena.Floats(tiles * slot_floats);
  float* slots = arena.Floats(capacity * slot_floats);
  const auto state_at = [&](float* base, int64_t index) {
    return Arena(base + index * slot_floats).State(rows, head_dim_);
  };
  for (int64_t i = 0; i < tiles; ++i) ClearState(state_at(sums, i), rows);

  struct Piece {
    int64_t tile;
    int32_t chunk;
  };
  Piece next = {0, FirstChunk(TileAt(0))};
  while (next.tile < tiles) {
    Piece pieces[kMaxPieces];
    int64_t count = 0;
    for (; count < capacity && next.tile < tiles; ++count) {
      pieces[count] = next;
      if (++next.chunk < EndChunk(TileAt(next.tile))) continue;
      if (++next.tile < tiles) next.chunk = FirstChunk(TileAt(next.tile));
    }
    ForEachItem(context_, count, [&](int64_t item, int thread) {
      Arena scratch = ThreadArena(thread);
      const Tile tile = TileAt(pieces[item].tile);
      AttentionChunk chunk = PrepareTile(tile, scratch);
      if (item + threads < count) {
        const Piece& after = pieces[item + threads];
        chunk.ahead = Keys(TileAt(after.tile), after.chunk);
      }
      Attend(chunk, pieces[item].chunk * kChunkKeys, scratch, state_at(slots, item));
    });
    const int64_t first_tile = pieces[0].tile;
    ForEachItem(context_, pieces[count - 1].tile - first_tile + 1, [&](int64_t item, int) {
      const int64_t index = first_tile + item;
      for (int64_t i = 0; i < count; ++i)
        if (pieces[i].tile == index)
          kernels_.merge_state(state_at(slots, i), state_at(sums, index),
                               TileAt(index).tokens * group_, head_dim_);
    });
  }
  for (int64_t i = 0; i < tiles; ++i) FinishTile(TileAt(i), state_at(sums, i));
}

}  // namespace

size_t AttentionWorkspace(int threads, int64_t /*max_t*/, int32_t q_heads, int32_t head_dim) {
  const int64_t rows = std::max<int64_t>(kTargetRows, q_heads);
  const int64_t shared = (kMinTilesPerThread + kChunksPerThread) * StateFloats(rows, head_dim);
  return static_cast<size_t>(threads * (ThreadFloats(rows, head_dim) + shared)) * sizeof(float);
}

void Attention(const VectorKernels& kernels, const OpContext& context,
               const AttentionParams& params) {
  AttentionRun(kernels, context, params).Run();
}

}  // namespace nibble::kernels::cpu
