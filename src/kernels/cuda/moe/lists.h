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
#include "kernels/ops.h"

namespace nibble::kernels::cuda::moe {

// One linear of an expert, as kernels read it; tiles.data null: there is none.
struct ExpertLinear {
  WeightTiles tiles;
  const float* bias = nullptr;  // (N) or null
};

struct Expert {
  ExpertLinear gate_up, up, down;
};

struct Group {
  Expert expert;
  int32_t id = 0;  // E: the shared expert
  int32_t first_row = 0;
  int32_t rows = 0;  // 1..group_rows
  int32_t unused = 0;
};

// Where a token meets an expert.
struct Place {
  int32_t group_column;  // group * kColumnsOfGroup + its row's place in the group; -1: nowhere
  float weight;          // of the expert's output
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
  int32_t* first_row = nullptr;  // (E + 2): expert e has rows [first_row[e], first_row[e + 1])
  Group* groups = nullptr;       // (max_groups)
  int32_t* row_token = nullptr;  // (rows)
  float* row_weight = nullptr;   // (rows): the routing weight, also where it goes to the input
  Place* places = nullptr;       // (T, top_k + 1): ascending experts, the shared one last
};

}  // namespace nibble::kernels::cuda::moe
