// What a thread of a warpgroup does with the scores of a leaf: rows g and g + 8 of its warp's 16,
// in wgmma's accumulators.
#pragma once

#include "kernels/cuda/attention/attention_problem.cuh"

namespace nibble::kernels::cuda {

template <bool kFp8>
struct LeafSoftmax {
  const AttentionProblem& p;
  int row[2];  // of the sequence
  KeyRange row_keys[2];
  KeyRange seen_by_all;  // keys that every row of the warp sees

  // warp_row: the warp's first, of the sequence.
  __device__ __forceinline__ LeafSoftmax(const AttentionProblem& problem, const AttentionTile& tile,
                                         int warp_row)
      : p(problem) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = warp_row + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
      row_keys[r] = KeysOfToken(p, tile, row[r] / p.heads_per_kv);
    }
    seen_by_all = {KeysOfToken(p, tile, (warp_row + 15) / p.heads_per_kv).first,
                   KeysOfToken(p, tile, warp_row / p.heads_per_kv).last};
    if ((warp_row + 15) / p.heads_per_kv >= tile.tokens) seen_by_all = {0, -1};
  }

  __device__ __forceinline__ bool HasRow(int r) const { return row_keys[r].last >= 0; }

  // Scores of a leaf become weights; m and l move on; rescale: of what the block's sums are so far.
  __device__ __forceinline__ void operator()(float (&s)[32], uint32_t (&weights)[4][4],
                                             float (&m)[2], float (&l)[2], float (&rescale)[2],
                                             int leaf) const {
    float largest[2], sums[2];
    FindLargest(s, largest, leaf);
#pragma unroll
    for (int r = 0; r < 2; ++r) rescale[r] = Grow(m[r], largest[r]);
    Weigh(s, weights, m, sums);
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] = __fmaf_rn(l[r], rescale[r], sums[r]);
  }

  // The same in parts. Of the rows' scores the largest, scaled; those of unseen keys become -inf.
  __device__ __forceinline__ void FindLargest(float (&s)[32], float (&scaled)[2], int leaf) const {
    const int first = leaf * kLeafKeys;
    if (first < seen_by_all.first || first + kLeafKeys - 1 > seen_by_all.last) Mask(s, first);
    float largest[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float pairs[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) pairs[j] = fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]);
#pragma unroll
      for (int n = 4; n > 0; n /= 2)
#pragma unroll
        for (int i = 0; i < n; ++i) pairs[i] = fmaxf(pairs[2 * i], pairs[2 * i + 1]);
      largest[r] = pairs[0];
    }
    // Both rows side by side: these steps wait for one another.
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const float others[2] = {__shfl_xor_sync(0xffffffff, largest[0], distance),
                               __shfl_xor_sync(0xffffffff, largest[1], distance)};
#pragma unroll
      for (int r = 0; r < 2; ++r) largest[r] = fmaxf(largest[r], others[r]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) scaled[r] = largest[r] * p.score_scale;
  }

  // m moves on; the factor of what was summed before.
  __device__ __forceinline__ static float Grow(float& m, float largest) {
    const float next = fmaxf(m, largest);
    const float rescale = Exp2(m - Reference(next));
    m = next;
    return rescale;
  }

  // m: as it is with this leaf; sums: of the lane's weights.
  __device__ __forceinline__ void Weigh(const float (&s)[32], uint32_t (&weights)[4][4],
                                        const float (&m)[2], float (&sums)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float reference = Reference(m[r]);
      float pairs[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float p0 = Exp2(__fmaf_rn(s[4 * j + 2 * r], p.score_scale, -reference));
        const float p1 = Exp2(__fmaf_rn(s[4 * j + 2 * r + 1], p.score_scale, -reference));
        pairs[j] = p0 + p1;
        weights[j / 2][j % 2 * 2 + r] = PackWeights<kFp8>(p0, p1);
      }
      sums[r] = TreeSum(pairs);
    }
  }

  // All of it with the weights in FP32, where the scores were; Pack makes A of P V of them.
  __device__ __forceinline__ void WeighInPlace(float (&s)[32], float (&m)[2], float (&l)[2],
                                               float (&rescale)[2], int leaf) const {
    float largest[2], reference[2];
    FindLargest(s, largest, leaf);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rescale[r] = Grow(m[r], largest[r]);
      reference[r] = Reference(m[r]);
    }
    asm volatile("" : "+f"(reference[0]), "+f"(reference[1]));  // both before any weight
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float pairs[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float* const two = s + 4 * j + 2 * r;
        two[0] = Exp2(__fmaf_rn(two[0], p.score_scale, -reference[r]));
        two[1] = Exp2(__fmaf_rn(two[1], p.score_scale, -reference[r]));
        pairs[j] = two[0] + two[1];
      }
      l[r] = __fmaf_rn(l[r], rescale[r], TreeSum(pairs));
    }
  }

  __device__ __forceinline__ static void Pack(const float (&s)[32], uint32_t (&weights)[4][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        weights[j / 2][j % 2 * 2 + r] = PackWeights<kFp8>(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]);
  }

 private:
  __device__ __forceinline__ void Mask(float (&s)[32], int first) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const KeyRange& seen = row_keys[e / 2];
        const int key = first + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2;
        if (key < seen.first || key > seen.last) s[4 * j + e] = MinusInfinity();
      }
    }
  }
};

}  // namespace nibble::kernels::cuda
