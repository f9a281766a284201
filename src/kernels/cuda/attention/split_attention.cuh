// The kernel for few rows of any kind: a CTA takes one tile of 16 query rows and a share of the
// tile's keys.
//
// Keys come in rounds of kRoundKeys. Each warp copies and scores its own keys of the
// round; maxima and weights are exchanged through shared memory; then each warp sums the values of
// its own dimensions over all keys of the round. Copies of the next round's keys run during softmax
// and values, those of its values during the scores.
#pragma once

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/nvfp4_block.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/ldmatrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/nvfp4_cache.h"

namespace nibble::kernels::cuda {

// Where the values of a round lie in shared memory.
enum class ValueBuffer : int32_t {
  kOwn,       // beside the keys
  kKeys,      // the keys are the values; two buffers take turns
  kOverKeys,  // copied over the keys once these are scored, where nothing else fits
};

// Bytes between rows: an odd number of 16, so that ldmatrix meets no conflicts.
__host__ __device__ constexpr int32_t SplitPitch(int32_t bytes) {
  const int32_t pieces = (bytes + 15) / 16;
  return (pieces % 2 == 0 ? pieces + 1 : pieces) * 16;
}

// kDimAtoms of a kernel for all head dimensions up to 256 or kMaxHeadDim.
inline constexpr int kAnyUpTo256 = 0;
inline constexpr int kAnyDim = -1;

// Slices of 16 dimensions that a warp has the values of, at most.
__host__ __device__ constexpr int SplitUnits(int dim_atoms, int warps) {
  const int most = dim_atoms > 0 ? dim_atoms : dim_atoms == kAnyUpTo256 ? 16 : 64;
  return (most + warps - 1) / warps;
}

struct SplitShared {
  int32_t kv_pitch;
  int32_t q_pitch;
  int32_t v;  // offsets; the keys' is 0
  int32_t q;
  int32_t p;
  int32_t maxima;  // (warps, rows)
  int32_t sums;    // (warps, rows, 4 lanes of a quad)
  int32_t bytes;
  ValueBuffer value_buffer;
};

inline SplitShared SplitLayoutOf(const AttentionProblem& p, bool fp8, int32_t warps,
                                 int32_t round_keys, ValueBuffer value_buffer) {
  constexpr int32_t rows = kSplitTileRows;
  SplitShared s = {};
  s.value_buffer = value_buffer;
  s.kv_pitch = SplitPitch(p.dim_atoms * (fp8 ? 16 : 32));
  s.q_pitch = SplitPitch(p.dim_atoms * 32);
  const int32_t buffer = round_keys * s.kv_pitch;
  s.v = buffer;
  s.q = value_buffer == ValueBuffer::kOverKeys ? buffer : 2 * buffer;
  s.p = s.q + rows * s.q_pitch;
  s.maxima = s.p + rows * SplitPitch(round_keys * 2);
  s.sums = s.maxima + warps * rows * 4;
  s.bytes = s.sums + warps * rows * 4 * 4;
  return s;
}

// kNvfp4, without kFp8: of a cache in NVFP4, whose rows become BF16 in shared memory, in the order
// of nvfp4_block.cuh.
template <bool kFp8, int kWarps, int kRoundKeys, int kDimAtoms, bool kNvfp4>
struct SplitWorker {
  static constexpr int kWarpKeys = kRoundKeys / kWarps < 8 ? 8 : kRoundKeys / kWarps;
  static constexpr int kScoreWarps = kRoundKeys / kWarpKeys;  // the first ones have keys
  static constexpr int kKeyAtoms = kWarpKeys / 8;
  static constexpr int kLeaves = kRoundKeys / kLeafKeys;
  static constexpr int kWarpsPerLeaf = kScoreWarps / kLeaves;
  static constexpr int kUnits = SplitUnits(kDimAtoms, kWarps);

  static constexpr int kRows = kSplitTileRows;
  static constexpr int kLaneRows = 2;             // g and g + 8
  static constexpr bool kFours = kFp8 || kNvfp4;  // a lane's dimensions of an atom are neighbours

  // o of this lane: its rows of the warp's 16-wide slices of Dh, two atoms each of C fragments.
  struct State {
    float o[kUnits][2][4];
    float m[kLaneRows];
    float l[kLaneRows];
  };

  const AttentionProblem& p;
  const SplitShared& layout;
  uint8_t* shared;
  int warp, lane, g, q;
  AttentionTile tile;
  int kv_head;
  KeyRange keys;  // of the tile
  KeyRange row_keys[kLaneRows];

  __device__ __forceinline__ SplitWorker(const AttentionProblem& problem, const SplitShared& s,
                                         uint8_t* memory)
      : p(problem), layout(s), shared(memory) {
    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    g = lane / 4;
    q = lane % 4;
  }

  __device__ __forceinline__ uint8_t* KeyBuffer(int round) const {
    const bool second = layout.value_buffer == ValueBuffer::kKeys && round % 2 == 1;
    return shared + (second ? layout.v : 0);
  }
  __device__ __forceinline__ uint8_t* Values(int round) const {
    return layout.value_buffer == ValueBuffer::kOwn ? shared + layout.v : KeyBuffer(round);
  }
  __device__ __forceinline__ int DimOf(int slice, int atom, int e) const {
    if constexpr (kFours) return slice * 16 + (kNvfp4 ? Nvfp4QuadDim(q) : 4 * q) + 2 * e + atom;
    return slice * 16 + atom * 8 + 2 * q + e;
  }

  __device__ __forceinline__ int dim_atoms() const {
    return kDimAtoms > 0 ? kDimAtoms : p.dim_atoms;
  }
  __device__ __forceinline__ int kv_pitch() const {
    return kDimAtoms > 0 ? SplitPitch(kDimAtoms * (kFp8 ? 16 : 32)) : layout.kv_pitch;
  }
  __device__ __forceinline__ static constexpr int p_pitch() { return SplitPitch(kRoundKeys * 2); }
  __device__ __forceinline__ int q_pitch() const {
    return kDimAtoms > 0 ? SplitPitch(kDimAtoms * 32) : layout.q_pitch;
  }

  // ---- Copies ----

  // Neighbouring keys of this warp that lie in one page, so one after another in memory.
  static constexpr int kRunKeys = kWarpKeys < 16 ? kWarpKeys : 16;
  static constexpr int kRuns = kWarpKeys / kRunKeys;
  struct Pages {
    int32_t of_run[kRuns];
  };

  __device__ __forceinline__ int FirstKey(int base) const { return base + warp * kWarpKeys; }

  __device__ __forceinline__ Pages PagesOf(int base) const {
    Pages pages;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const int key = min(max(FirstKey(base) + run * kRunKeys, keys.first), keys.last);
      pages.of_run[run] = p.page_table[tile.sequence * p.max_pages + (key >> p.page_shift)];
    }
    return pages;
  }

  // This warp's keys of the round that starts at `base`, zeros where the tile sees nothing.
  __device__ __forceinline__ void CopyRows(uint8_t* to, const uint8_t* cache, int base,
                                           const Pages& pages) const {
    if (warp >= kScoreWarps) return;
    if constexpr (kNvfp4) {
      DecodeRows(to, cache, base, pages);
    } else {
      CopyCodes(to, cache, base, pages);
    }
  }

  __device__ __forceinline__ void CopyCodes(uint8_t* to, const uint8_t* cache, int base,
                                            const Pages& pages) const {
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const int first = FirstKey(base) + run * kRunKeys;
      const int64_t row = ((int64_t{pages.of_run[run]} * p.kv_heads + kv_head) << p.page_shift) +
                          (first & ((1 << p.page_shift) - 1));
      CopyRun(to + (warp * kWarpKeys + run * kRunKeys) * kv_pitch(), cache + row * p.row_bytes,
              first);
    }
  }

  // The same of NVFP4 rows. They are there when this returns; a few blocks are under way at a time.
  __device__ __forceinline__ void DecodeRows(uint8_t* to, const uint8_t* cache, int base,
                                             const Pages& pages) const {
    constexpr int kAtOnce = 4;
    const int atoms = dim_atoms(), blocks = kRunKeys * atoms;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const int first = FirstKey(base) + run * kRunKeys;
      const int page_size = 1 << p.page_shift;
      const Nvfp4CacheRow place =
          Nvfp4RowOf(page_size, p.head_dim,
                     ((int64_t{pages.of_run[run]} * p.kv_heads + kv_head) << p.page_shift) +
                         (first & (page_size - 1)));
      const auto* const codes = reinterpret_cast<const uint2*>(cache + place.codes);
      uint8_t* const rows = to + (warp * kWarpKeys + run * kRunKeys) * kv_pitch();
      for (int begin = lane; begin < blocks; begin += 32 * kAtOnce) {
        uint2 of_block[kAtOnce] = {};
        uint8_t scale[kAtOnce] = {};
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          const int i = begin + 32 * n;
          if (i >= blocks || !IsSeen(first + i / atoms)) continue;
          of_block[n] = __ldcg(codes + i);
          scale[n] = __ldcg(cache + place.scales + i);
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          const int i = begin + 32 * n;
          if (i >= blocks) continue;
          uint4 values[2];
          WidenNvfp4Block(of_block[n], Nvfp4Scales(scale[n] << 8), 0, values);
          auto* const piece =
              reinterpret_cast<uint4*>(rows + i / atoms * kv_pitch() + i % atoms * 32);
          piece[0] = values[0];
          piece[1] = values[1];
        }
      }
    }
  }

  __device__ __forceinline__ bool IsSeen(int key) const {
    return key >= keys.first && key <= keys.last;
  }

  __device__ __forceinline__ void CopyRun(uint8_t* to, const uint8_t* from, int first) const {
    if constexpr (kDimAtoms > 0) {
      constexpr int kPieces = kDimAtoms * (kFp8 ? 1 : 2);
      const bool all_seen = IsSeen(first) && IsSeen(first + kRunKeys - 1);
#pragma unroll
      for (int n = 0; n < kRunKeys * kPieces / 32; ++n) {
        const int i = lane + n * 32;
        uint8_t* piece = to + i / kPieces * kv_pitch() + i % kPieces * 16;
        if (all_seen) {
          ptx::CopyAsync16(piece, from + i * 16);
        } else {
          ptx::CopyAsync16OrZero(piece, from + i * 16, IsSeen(first + i / kPieces));
        }
      }
    } else if (p.row_bytes % 16 == 0) {
      const unsigned pieces = p.row_bytes / 16;
      const unsigned inverse = (1u << 20) / pieces + 1;  // exact for the few thousand i there are
      for (unsigned i = lane; i < kRunKeys * pieces; i += 32) {
        const unsigned row = (i * inverse) >> 20;
        ptx::CopyAsync16OrZero(to + row * kv_pitch() + (i - row * pieces) * 16, from + i * 16,
                               IsSeen(first + row));
      }
    } else {
      for (int row = 0; row < kRunKeys; ++row)
        for (int i = lane; i < p.row_bytes; i += 32)
          to[row * kv_pitch() + i] = IsSeen(first + row) ? from[row * p.row_bytes + i] : uint8_t{0};
    }
  }

  // Padding of rows that do not end with an atom is read, so it must be zero.
  __device__ __forceinline__ void ClearPadding() const {
    if (p.head_dim % 16 == 0) return;
    for (int i = threadIdx.x * 16; i < layout.q; i += kWarps * 32 * 16)
      *reinterpret_cast<uint4*>(shared + i) = {};
    __syncthreads();
  }

  // Eight dimensions of a row at a time where rows are aligned for it.
  __device__ __forceinline__ void LoadQueries() {
    const int pieces = dim_atoms() * 2;
    for (int i = threadIdx.x; i < kRows * pieces; i += kWarps * 32) {
      const int row = i / pieces;
      const int d = (i - row * pieces) * 8;
      const int row_of_sequence = tile.first_row + row;
      const int token = row_of_sequence / p.heads_per_kv;
      union {
        uint4 vector;
        uint16_t bits[8];
      } x = {};
      if (token < tile.tokens) {
        const int head = kv_head * p.heads_per_kv + row_of_sequence - token * p.heads_per_kv;
        const uint16_t* from =
            p.q + (int64_t{tile.first_token + token} * p.q_heads + head) * p.head_dim + d;
        if (kDimAtoms > 0 || p.head_dim % 8 == 0) {
          if (d < p.head_dim) x.vector = *reinterpret_cast<const uint4*>(from);
        } else {
          for (int j = 0; j < 8; ++j) x.bits[j] = d + j < p.head_dim ? from[j] : uint16_t{0};
        }
      }
      uint8_t* to = shared + layout.q + row * q_pitch() + d / 16 * 32;
      if constexpr (kFp8) {
        uint16_t* slots = reinterpret_cast<uint16_t*>(to);
#pragma unroll
        for (int j = 0; j < 8; ++j) slots[E4M3Slot(d % 16 + j)] = QueryForFp8(x.bits[j]);
      } else if constexpr (kNvfp4) {
        uint16_t* slots = reinterpret_cast<uint16_t*>(to);
#pragma unroll
        for (int j = 0; j < 8; ++j) slots[Nvfp4Slot(d % 16 + j)] = x.bits[j];
      } else {
        *reinterpret_cast<uint4*>(to + d % 16 * 2) = x.vector;
      }
    }
  }

  // ---- Scores ----

  // B fragments of this warp's keys for atom a of Dh: b[j] holds those of eight keys.
  __device__ __forceinline__ void LoadKeyFragments(uint32_t (&b)[kKeyAtoms][2], uint32_t k_address,
                                                   int a) const {
    const int matrix = lane / 8;
    const int row = lane % 8;
    if constexpr (kFp8) {
      uint32_t codes[kKeyAtoms];
      ptx::LoadMatrices(codes, k_address + (matrix % kKeyAtoms * 8 + row) * kv_pitch() + a * 16);
#pragma unroll
      for (int j = 0; j < kKeyAtoms; ++j) {
        b[j][0] = E4M3Even(codes[j]);
        b[j][1] = E4M3Odd(codes[j]);
      }
    } else if constexpr (kKeyAtoms == 1) {
      ptx::LoadMatrices(b[0], k_address + row * kv_pitch() + a * 32 + matrix % 2 * 16);
    } else {
#pragma unroll
      for (int j = 0; j < kKeyAtoms; j += 2) {
        uint32_t r[4];
        ptx::LoadMatrices(
            r, k_address + (j * 8 + matrix / 2 * 8 + row) * kv_pitch() + a * 32 + matrix % 2 * 16);
        b[j][0] = r[0];
        b[j][1] = r[1];
        b[j + 1][0] = r[2];
        b[j + 1][1] = r[3];
      }
    }
  }

  __device__ __forceinline__ void Score(float (&s)[kKeyAtoms][4], int round) const {
    if (warp >= kScoreWarps) return;
    const uint32_t k_address = ptx::SharedAddress(KeyBuffer(round) + warp * kWarpKeys * kv_pitch());
    const int matrix = lane / 8;
    const uint32_t q_address = ptx::SharedAddress(shared + layout.q) +
                               (matrix % 2 * 8 + lane % 8) * q_pitch() + matrix / 2 * 16;
#pragma unroll
    for (int j = 0; j < kKeyAtoms; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = 0.0f;
#pragma unroll(kDimAtoms > 0 ? kDimAtoms : 4)
    for (int a = 0; a < dim_atoms(); ++a) {
      uint32_t b[kKeyAtoms][2];
      uint32_t rows[4];
      LoadKeyFragments(b, k_address, a);
      ptx::LoadMatrices(rows, q_address + a * 32);
#pragma unroll
      for (int j = 0; j < kKeyAtoms; ++j) ptx::MmaBf16(s[j], rows, b[j][0], b[j][1]);
    }
  }

  // Scores of masked keys become -inf; this warp's largest of each row goes to shared memory.
  __device__ __forceinline__ void MaskAndShareMaxima(float (&s)[kKeyAtoms][4], int base) const {
    if (warp >= kScoreWarps) return;
    float largest[kLaneRows];
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) largest[r] = MinusInfinity();
#pragma unroll
    for (int j = 0; j < kKeyAtoms; ++j) {
#pragma unroll
      for (int e = 0; e < 2 * kLaneRows; ++e) {
        const KeyRange& seen = row_keys[e / 2];
        const int key = base + warp * kWarpKeys + j * 8 + 2 * q + e % 2;
        if (key < seen.first || key > seen.last) s[j][e] = MinusInfinity();
        largest[e / 2] = fmaxf(largest[e / 2], s[j][e]);
      }
    }
    float* maxima = reinterpret_cast<float*>(shared + layout.maxima) + warp * kRows;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const float row_largest = QuadMax(largest[r]);
      if (q == 0) maxima[g + 8 * r] = row_largest;
    }
  }

  // ---- Softmax ----

  // Per leaf of the round and row: what o and l of the block are scaled by; m moves on.
  // own_reference: of the leaf that holds this warp's keys.
  __device__ __forceinline__ void Rescales(float (&rescale)[kLeaves][kLaneRows],
                                           float (&own_reference)[kLaneRows],
                                           float (&m)[kLaneRows]) const {
    const float* maxima = reinterpret_cast<const float*>(shared + layout.maxima);
#pragma unroll
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        float largest = MinusInfinity();
#pragma unroll
        for (int w = 0; w < kWarpsPerLeaf; ++w)
          largest = fmaxf(largest, maxima[(leaf * kWarpsPerLeaf + w) * kRows + g + 8 * r]);
        const float next = fmaxf(m[r], largest * p.score_scale);
        const float reference = Reference(next);
        rescale[leaf][r] = Exp2(m[r] - reference);
        m[r] = next;
        if (warp / kWarpsPerLeaf == leaf) own_reference[r] = reference;
      }
    }
  }

  // Weights of this warp's keys, as BF16 for all warps; their sum over the lane's columns.
  __device__ __forceinline__ void ShareWeights(float (&s)[kKeyAtoms][4],
                                               const float (&reference)[kLaneRows]) const {
    if (warp >= kScoreWarps) return;
    float pairs[kLaneRows][kKeyAtoms];
#pragma unroll
    for (int j = 0; j < kKeyAtoms; ++j) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const float p0 = Exp2(__fmaf_rn(s[j][2 * r], p.score_scale, -reference[r]));
        const float p1 = Exp2(__fmaf_rn(s[j][2 * r + 1], p.score_scale, -reference[r]));
        pairs[r][j] = p0 + p1;
        *reinterpret_cast<uint32_t*>(shared + layout.p + (g + 8 * r) * p_pitch() +
                                     (warp * kWarpKeys + j * 8 + 2 * q) * 2) =
            PackWeights<kFp8>(p0, p1);
      }
    }
    float* sums = reinterpret_cast<float*>(shared + layout.sums) + warp * kRows * 4;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) sums[(g + 8 * r) * 4 + q] = TreeSum(pairs[r]);
  }

  __device__ __forceinline__ float LeafSum(int leaf, int r) const {
    const float* sums = reinterpret_cast<const float*>(shared + layout.sums) +
                        leaf * kWarpsPerLeaf * kRows * 4 + (g + 8 * r) * 4 + q;
    float of_warps[kWarpsPerLeaf];
#pragma unroll
    for (int w = 0; w < kWarpsPerLeaf; ++w) of_warps[w] = sums[w * kRows * 4];
    return TreeSum(of_warps);
  }

  // ---- Values ----

  __device__ __forceinline__ void AddValues(State& block,
                                            const float (&rescale)[kLeaves][kLaneRows],
                                            int round) const {
    const int matrix = lane / 8;
    const int row = lane % 8;
    const uint32_t p_address = ptx::SharedAddress(shared + layout.p) +
                               (matrix % 2 * 8 + row) * p_pitch() + matrix / 2 * 16;
    const uint32_t v_address = ptx::SharedAddress(Values(round));
#pragma unroll
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int atom = 0; atom < 2; ++atom)
#pragma unroll
          for (int e = 0; e < 2 * kLaneRows; ++e) block.o[u][atom][e] *= rescale[leaf][e / 2];
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
        block.l[r] = __fmaf_rn(block.l[r], rescale[leaf][r], LeafSum(leaf, r));
#pragma unroll
      for (int a = leaf * 4; a < leaf * 4 + 4; a += 2) {
        uint32_t weights[2][4];
        ptx::LoadMatrices(weights[0], p_address + a * 32);
        ptx::LoadMatrices(weights[1], p_address + a * 32 + 32);
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const int slice = warp + u * kWarps;
          if (slice >= dim_atoms()) continue;
          if constexpr (kFp8) {
            uint32_t codes[4];
            ptx::LoadMatricesTransposed(
                codes, v_address + (a * 16 + matrix * 8 + row) * kv_pitch() + slice * 16);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              ptx::MmaBf16(block.o[u][0], weights[i], E4M3Even(codes[2 * i]),
                           E4M3Even(codes[2 * i + 1]));
              ptx::MmaBf16(block.o[u][1], weights[i], E4M3Odd(codes[2 * i]),
                           E4M3Odd(codes[2 * i + 1]));
            }
          } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              uint32_t b[4];
              ptx::LoadMatricesTransposed(
                  b, v_address + ((a + i) * 16 + matrix % 2 * 8 + row) * kv_pitch() + slice * 32 +
                         matrix / 2 * 16);
              ptx::MmaBf16(block.o[u][0], weights[i], b[0], b[1]);
              ptx::MmaBf16(block.o[u][1], weights[i], b[2], b[3]);
            }
          }
        }
      }
    }
  }

  // ---- Results ----

  __device__ __forceinline__ static void Clear(State& state) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int i = 0; i < 8; ++i) state.o[u][i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      state.m[r] = MinusInfinity();
      state.l[r] = 0.0f;
    }
  }

  __device__ __forceinline__ static void MergeInto(State& state, const State& incoming) {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const MergeFactors factors = Merge(state.m[r], incoming.m[r]);
      state.l[r] = Merged(state.l[r], incoming.l[r], factors);
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& o = state.o[u][i / 2][2 * r + i % 2];
          o = Merged(o, incoming.o[u][i / 2][2 * r + i % 2], factors);
        }
    }
  }

  __device__ __forceinline__ void WritePartial(const State& state, int unit) const {
    float* entry = PartialEntry(p, tile.slot, kv_head, unit);
    const int width = dim_atoms() * 16;
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const int row = g + 8 * r;
      if (row_keys[r].last < 0) continue;
      if (warp == 0 && q == 0) {
        entry[kRows * width + row] = state.m[r];
        entry[kRows * width + kRows + row] = state.l[r];
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int slice = warp + u * kWarps;
        if (slice >= dim_atoms()) continue;
        const float(&o)[2][4] = state.o[u];
        float* to = entry + row * width + DimOf(slice, 0, 0);
        if constexpr (kFours) {
          *reinterpret_cast<float4*>(to) = {o[0][2 * r], o[1][2 * r], o[0][2 * r + 1],
                                            o[1][2 * r + 1]};
        } else {
          *reinterpret_cast<float2*>(to) = {o[0][2 * r], o[0][2 * r + 1]};
          *reinterpret_cast<float2*>(to + 8) = {o[1][2 * r], o[1][2 * r + 1]};
        }
      }
    }
  }

  __device__ __forceinline__ void WriteOutput(const State& state) const {
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      if (row_keys[r].last < 0) continue;
      const int row = tile.first_row + g + 8 * r;
      const int head = kv_head * p.heads_per_kv + row % p.heads_per_kv;
      const int token = tile.first_token + row / p.heads_per_kv;
      const float factor = OutputFactor(
          state.m[r], state.l[r], p.sinks != nullptr ? p.sinks + head : nullptr, p.value_scale);
      uint16_t* out = p.out + (int64_t{token} * p.q_heads + head) * p.head_dim;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int slice = warp + u * kWarps;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int d = DimOf(slice, i / 2, i % 2);
          if (d < p.head_dim) out[d] = ToBf16(state.o[u][i / 2][2 * r + i % 2] * factor);
        }
      }
    }
  }
};

// Where a CTA's next round of keys begins: rounds of a unit in order, then the unit `splits` on.
struct RoundCursor {
  int base;
  int round_keys;
  int unit_keys;
  int units_to_skip;

  __device__ __forceinline__ int Next() const {
    const int next = base + round_keys;
    return next % unit_keys == 0 ? next + units_to_skip * unit_keys : next;
  }
};

template <bool kFp8, int kWarps, int kRoundKeys, int kDimAtoms, bool kNvfp4>
__global__ void __launch_bounds__(kWarps * 32, 16 / kWarps)
    SplitAttentionKernel(const __grid_constant__ AttentionProblem p,
                         const __grid_constant__ SplitShared layout) {
  using Worker = SplitWorker<kFp8, kWarps, kRoundKeys, kDimAtoms, kNvfp4>;
  extern __shared__ __align__(16) uint8_t shared[];

  // A grid without work waits, too: the successor relies on it. One CTA is enough.
  if (blockIdx.x == 0 && p.prefill_rows != kNoPrefill) ptx::WaitForPredecessor();

  Worker w(p, layout, shared);
  const int pair = blockIdx.x / p.splits;
  const int split = blockIdx.x - pair * p.splits;
  const int slot = pair / p.kv_heads;
  w.kv_head = pair - slot * p.kv_heads;
  w.tile = FindTile(p, kSplitTileRows, slot);
  if (w.tile.sequence < 0) return;
  w.keys = KeysOfTile(p, w.tile, kSplitTileRows);
  const SplitPlan plan = PlanOf(p, w.keys);
  if (!plan.partial && split > 0) return;
#pragma unroll
  for (int r = 0; r < Worker::kLaneRows; ++r)
    w.row_keys[r] = KeysOfToken(p, w.tile, (w.tile.first_row + w.g + 8 * r) / p.heads_per_kv);

  const int first_unit = w.keys.first / plan.unit_keys;
  RoundCursor cursor = {(first_unit + split) * plan.unit_keys, kRoundKeys, plan.unit_keys,
                        plan.partial ? p.splits - 1 : 0};
  while (cursor.base + kRoundKeys <= w.keys.first) cursor.base = cursor.Next();
  if (cursor.base > w.keys.last) return;

  // Only this step's own keys and the queries are the predecessor's work.
  w.ClearPadding();
  const ValueBuffer value_buffer = layout.value_buffer;
  typename Worker::Pages pages = w.PagesOf(cursor.base);
  const bool are_old = w.FirstKey(cursor.base) + Worker::kWarpKeys <= w.tile.kv_len - w.tile.tokens;
  if (!are_old) ptx::WaitForPredecessor();
  w.CopyRows(w.KeyBuffer(0), p.k, cursor.base, pages);
  ptx::CommitCopies();
  if (value_buffer == ValueBuffer::kOwn) w.CopyRows(w.Values(0), p.v, cursor.base, pages);
  ptx::CommitCopies();
  if (are_old) ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  w.LoadQueries();
  __syncthreads();

  typename Worker::State block, group, total;
  Worker::Clear(block);
  Worker::Clear(group);
  Worker::Clear(total);
  for (int round = 0; cursor.base <= w.keys.last; ++round) {
    const int base = cursor.base;
    const int next = cursor.Next();
    const bool more = next <= w.keys.last;
    typename Worker::Pages next_pages = pages;
    if (more) next_pages = w.PagesOf(next);
    ptx::WaitForCopies<1>();  // the keys
    __syncwarp();
    if (value_buffer == ValueBuffer::kKeys && more)
      w.CopyRows(w.KeyBuffer(round + 1), p.k, next, next_pages);
    float s[Worker::kKeyAtoms][4];
    w.Score(s, round);
    __syncwarp();
    if (value_buffer == ValueBuffer::kOwn && more)
      w.CopyRows(w.KeyBuffer(round + 1), p.k, next, next_pages);
    ptx::CommitCopies();
    w.MaskAndShareMaxima(s, base);
    __syncthreads();
    if (value_buffer == ValueBuffer::kOverKeys) {
      w.CopyRows(w.Values(round), p.v, base, pages);
      ptx::CommitCopies();
    }
    float rescale[Worker::kLeaves][Worker::kLaneRows], reference[Worker::kLaneRows];
    w.Rescales(rescale, reference, block.m);
    w.ShareWeights(s, reference);
    if (value_buffer == ValueBuffer::kOverKeys) {
      ptx::WaitForCopies<0>();
    } else {
      ptx::WaitForCopies<1>();  // the values
    }
    __syncthreads();
    w.AddValues(block, rescale, round);
    __syncthreads();
    if (more && value_buffer == ValueBuffer::kOwn)
      w.CopyRows(w.Values(round + 1), p.v, next, next_pages);
    if (more && value_buffer == ValueBuffer::kOverKeys) {
      w.CopyRows(w.KeyBuffer(round + 1), p.k, next, next_pages);
      ptx::CommitCopies();
    }
    ptx::CommitCopies();

    const int end = base + kRoundKeys;
    const bool last = end > w.keys.last;
    if (end % kBlockKeys == 0 || last) {
#pragma unroll
      for (int r = 0; r < Worker::kLaneRows; ++r) block.l[r] = QuadSum(block.l[r]);
      if (plan.partial && plan.unit_keys == kBlockKeys) {
        w.WritePartial(block, base / kBlockKeys - first_unit);
      } else {
        Worker::MergeInto(group, block);
      }
      Worker::Clear(block);
    }
    if (plan.unit_keys == kGroupKeys && (end % kGroupKeys == 0 || last)) {
      if (plan.partial) {
        w.WritePartial(group, base / kGroupKeys - first_unit);
      } else {
        Worker::MergeInto(total, group);
      }
      Worker::Clear(group);
    }
    cursor.base = next;
    pages = next_pages;
  }
  if (!plan.partial) w.WriteOutput(total);
}

}  // namespace nibble::kernels::cuda
