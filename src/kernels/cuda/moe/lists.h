// What the phases of the MoE op hand to one another, in the op's workspace:
//
//   router logits -> Route -> Lists -> FC1 (gate_up, activation) -> h -> FC2 (down, weighted sum)
//
// Rows: every (token, expert) pair has one, sorted by expert, then by token; the shared expert
// comes last, as expert E with all tokens. Row p's activations h lie at h + p * h_stride. Experts
// that this rank does not hold have no rows.
//
// Groups: the rows of an expert, cut into pieces of at most group_rows, in the order of rows. An
// expert's weights are decoded once per group.
//
// All of it is written by Route on the device; sizes that depend on the routing are read there too.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// The row tiles of a weight, or of some of its rows, as kernels read them.
struct Source {
  const std::byte* data = nullptr;  // of row tile 0; null: nothing to multiply by
  int32_t row_tile_bytes = 0;
  int32_t slice_stride = 0;
  int16_t k_tiles = 0;
  int16_t x_tiles = 0;
  int16_t group_columns = 0;
  TileFormat format = TileFormat::kBf16;

  NIBBLE_HD int slices() const { return (k_tiles + kSliceTiles - 1) / kSliceTiles; }
};

// gate.data null: not held here. Without a gate, `gate` is all there is before the activation.
struct alignas(16) Expert {
  Source gate, up, down;  // up: from the tile of its first row on
  const float* gate_scales = nullptr;
  const float* up_scales = nullptr;
  const float* down_scales = nullptr;
  const float* gate_bias = nullptr;  // or null, all three
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
  int32_t up_offset = 0;  // of up's first row in its tile
  int32_t unused = 0;
};

struct alignas(16) Group {
  Expert expert;
  int32_t id = 0;  // E: the shared expert
  int32_t f = 0;
  int32_t first_row = 0;
  int32_t rows = 0;  // 1..group_rows
};

// The work of a phase: items of 16 outputs of a group, group by group, in one contiguous share per
// block.
struct Split {
  int32_t blocks = 0;
  int32_t routed_tiles = 0;  // items of a group
  int32_t shared_tiles = 0;
  int32_t routed_cost = 1;  // of an item
  int32_t shared_cost = 1;
};

struct alignas(16) Share {
  int32_t group = 0;
  int32_t items = 0;
  int16_t tile = 0;           // of the group, to begin with
  int16_t groups = 0;         // that it touches
  int32_t routed_groups = 0;  // of these
};

// Where a token meets an expert.
struct alignas(16) Place {
  int32_t group_column;  // group * kColumnsOfGroup + its row's place in the group; -1: nowhere
  int32_t row;
  float weight;  // of the expert's output
  int32_t unused;
};

inline constexpr int kMaxExperts = 1024;
inline constexpr int kColumnsOfGroup = 64;  // the most rows that a group may have
inline constexpr int kTokensOfBlock = 64;   // Route's blocks

struct Counts {
  int32_t routed_groups;
  int32_t groups;  // with those of the shared expert
  int32_t routed_rows;
  int32_t unused;
};

struct Lists {
  Counts* counts = nullptr;
  int32_t* first_row = nullptr;     // (E + 2): expert e has rows [first_row[e], first_row[e + 1])
  Group* groups = nullptr;          // (max_groups)
  int32_t* row_token = nullptr;     // (rows)
  float* row_weight = nullptr;      // (rows): the routing weight, also where it goes to the input
  Share* gate_up_shares = nullptr;  // (blocks of the phase)
  Share* down_shares = nullptr;
  Place* places = nullptr;  // (T, top_k + 1): ascending experts, the shared one last
};

}  // namespace nibble::kernels::cuda::moe
