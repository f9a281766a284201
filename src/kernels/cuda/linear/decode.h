// Linear of up to 64 tokens: weights are streamed once, every warp through a ring of its own.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxDecodeTokens = 64;

// How many of so many tokens one launch takes: fewer on GPUs with little shared memory.
int DecodeTokensOfLaunch(const WeightTiles& weight, int64_t tokens);

// Handed to the kernel by value. x is what meets the weight: column order and multiplier applied.
// Up to 16 tokens: rows of whole k-tiles (zeros beyond K), 16-byte aligned; more: as PrepareX
// leaves it.
struct DecodeArgs {
  WeightTiles weight;
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;  // a multiple of 8
  InputNorm norm;        // of x, where NormsInDecode says so
  const float* bias = nullptr;
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  bool add = false;        // to y
  bool activates = false;  // rows are paired, y holds N / 2 outputs of `activation`
  Activation activation;
  int m = 0;  // 1..64
};

// Whether the weight is so large that its launch has the multiprocessors to itself.
bool IsLone(const WeightTiles& weight);

// Whether one launch can take both weights: the second has FP32 outputs, the format and K of the
// first, and no bias.
inline bool MeetOneX(const DecodeArgs& first, const DecodeArgs& second) {
  return second.y_f32 != nullptr && second.bias == nullptr &&
         first.weight.format == second.weight.format &&
         first.weight.row_tile_bytes == second.weight.row_tile_bytes;
}

// Whether every CTA can norm x of m tokens for itself, in shared memory.
bool NormsInDecode(const WeightTiles& weight, const InputNorm& norm, int m);

// Whether DecodeArgs can take x of m tokens as it is.
bool DecodeTakes(const WeightTiles& weight, const uint16_t* x, int64_t x_stride, int m);
// Tokens rounded up to whole token tiles: those that PrepareX writes.
int DecodeTokens(int m);

// How a launch is cut and uses its shared memory. Changes the time, never the bits.
struct DecodePlan {
  int m = 0;                // tokens
  int blocks = 0;           // CTAs: one per multiprocessor, of one token's large weights two
  int token_tiles = 0;      // of 8 tokens: 1, 2, 4 or 8
  int stages = 0;           // of a warp's ring
  bool prepares_x = false;  // x comes from PrepareX
  // CTA b takes share row tiles, the first `larger` CTAs one more.
  int share = 0;
  int larger = 0;
  int chunk_slices = 0;   // slices along K before a CTA goes to its next row tiles
  int group_tiles = 0;    // row tiles before it goes to the next chunk
  int partial_units = 0;  // slice sums between two reductions, a multiple of the warps
  int slot_shift = 0;     // log2 of the tokens, rounded up, of a reduction
  int x_bytes = 0;        // of a chunk of x in shared memory; 0: it is read where it lies
  int run_bytes = 0;      // of running sums
  int scale_bytes = 0;    // of row scales and bias
  int shared_bytes = 0;
};

// One linear per head, in one launch: head h has weight heads[h] of device memory, all of one shape
// and format; x and y are h times their head strides further on. Any number of tokens, in blocks.
struct HeadDecodeArgs {
  DecodeArgs each;  // of head 0; m: of all tokens
  const WeightTiles* heads = nullptr;
  int head_count = 0;
  int64_t x_head_stride = 0;  // a multiple of 8
  int64_t y_head_stride = 0;
};

// The fastest known. norms: x, in every CTA; `stages` forces that many for up to 8 tokens, for
// benchmarks.
DecodePlan PlanDecode(const WeightTiles& weight, int m, bool norms, int stages = 0);

// CTAs of a plan that fit a multiprocessor together: two for up to 8 tokens, so that a launch loads
// its first weights while its predecessor finishes.
int DecodeBlocksPerMultiprocessor(const WeightTiles& weight, const DecodePlan& plan);

void LaunchDecode(const DecodeArgs& args, const DecodePlan& plan, void* stream);

// x as it lies: DecodeTakes it for up to 16 tokens.
void LaunchHeadDecode(const HeadDecodeArgs& args, void* stream);

}  // namespace nibble::kernels::cuda
