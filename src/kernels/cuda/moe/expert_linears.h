// The two phases of the experts' arithmetic, over the lists of Route: for few rows per expert,
// where the weights' bytes are what counts. A phase for many rows (a grouped GEMM) plugs in beside
// them: it takes the same lists and leaves h, or out, with the same bits.
#pragma once

#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// Most slices along K: then groups of 8 rows fit shared memory, whatever the format.
inline constexpr int kMaxGateUpSlices = 44;
inline constexpr int kMaxDownSlices = 112;
// The same where a block has but 99 KB.
inline constexpr int kMaxGateUpSlicesOfSmall = 29;
inline constexpr int kMaxDownSlicesOfSmall = 88;

// What the host knows about the weights of a phase, for the choice of kernel and shared memory.
struct WeightSet {
  bool all_nvfp4 = true;
  bool all_mxfp4 = true;
  int32_t slices = 0;         // of the weight with most
  int32_t slice_bytes = 0;    // of the largest
  int32_t tile_bytes = 0;     // of the largest row tile, for the balance of work
  WeightTiles like;           // one of them
  bool uniform = true;        // all have its sizes and format
  bool scales_follow = true;  // row scales lie right behind the tiles, in all

  void Add(const WeightTiles& tiles);
  void Add(const WeightSet& other);
};

// What a kernel is compiled for: weights of one format, or of any mix.
enum class Formats : uint8_t { kNvfp4, kMxfp4, kAny };
Formats FormatsOf(const WeightSet& set);

// One linear of all groups. kGateUp: h[p] (F) of every row p = bf16(activation(bf16(gate_up x))),
// with zeros up to a multiple of 64. kDown: y[p] (D) = down h[p].
enum class Phase : uint8_t { kGateUp, kDown };

struct PhaseParams {
  Phase phase = Phase::kGateUp;
  Lists lists;
  const uint16_t* x = nullptr;  // row of a token, or of p where by_row; columns up to a multiple of
  int64_t x_stride = 0;         // 64 are there and finite; rows 16-byte aligned
  bool by_row = false;
  const uint16_t* x_up = nullptr;  // what the rows of up see: x, or another of its kind
  uint16_t* h = nullptr;
  int64_t h_stride = 0;
  float* y = nullptr;          // rows of `outputs`
  int32_t outputs = 0;         // F or D, of a routed expert
  int32_t shared_outputs = 0;  // 0: no shared expert
  bool straddles = false;      // rows of up may begin inside a row tile
  Activation activation;
  int64_t t = 0;
  int64_t max_groups = 0;
  int32_t group_rows = 8;
  WeightSet routed, shared;
};

// How Route divides the work.
Split SplitOf(const PhaseParams& params);
// Whether groups of group_rows rows fit shared memory; groups of 8 do.
bool PhaseFits(const PhaseParams& params);
void RunPhase(const OpContext& context, const PhaseParams& params);

// out (T, D): every token's rows of y times their weights, in the order of its places.
struct SumRowsParams {
  Lists lists;
  const float* y = nullptr;  // (rows, D), or some columns of it
  int64_t y_stride = 0;
  int32_t top_k = 0;
  int64_t t = 0;
  int64_t d = 0;            // columns
  uint16_t* out = nullptr;  // from y's first column on, or
  float* out_f32 = nullptr;
  int64_t out_stride = 0;
  bool add = false;  // to out
};

void SumRows(const OpContext& context, const SumRowsParams& params);

}  // namespace nibble::kernels::cuda::moe
