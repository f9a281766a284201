// Experts stacked in one tensor per projection pair: which tensors they are, how they lie, and the
// view of one expert's projection. Layouts: checkpoint.h, ReadExpert.
//
// Found by what is stored: names of the companions, dtypes and shapes. Sources: transformers'
// modules that keep experts as parameters, gpt-oss' MXFP4 files, ModelOpt's exports of Llama-4 and
// gpt-oss. Thread-safety: pure functions over an open checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gather.h"

namespace nibble::formats {

enum class Projection : uint8_t { kGate, kUp, kDown };

// One stacked weight and its companions.
struct ExpertStack {
  const TensorEntry* weight = nullptr;
  const TensorEntry* scale = nullptr;
  const TensorEntry* global_scale = nullptr;
  const TensorEntry* input_scale = nullptr;
  const TensorEntry* input_multiplier = nullptr;  // pre_quant_scale: refused
  bool is_blocks = false;                         // (E, N, K/32, 16)
  bool is_pair = false;                           // gate and up rows in one matrix

  // Rows of the matrix that has `n` rows per projection.
  int64_t Rows(int64_t n) const { return is_pair ? 2 * n : n; }
};

// The stack that holds a projection, if the checkpoint has one.
std::optional<ExpertStack> FindExpertStack(const Checkpoint& checkpoint, std::string_view experts,
                                           Projection projection);

// The stacked bias, null if there is none; *is_pair: gate and up values in one row.
const TensorEntry* FindExpertBias(const Checkpoint& checkpoint, std::string_view experts,
                                  Projection projection, bool* is_pair);

// Which rows of the matrix of a gate and up pair are the projection's.
RowSelection ProjectionRows(Projection projection, bool is_pair, int64_t n,
                            const ExpertLayout& layout);

// How a stack lies; shapes are checked, values are not.
struct StackedLinear {
  ExpertStack stack;
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0;
  int64_t k = 0;
  bool transposed = false;
  RowSelection rows;
  int64_t scale_block_n = 1;
  int64_t scale_block_k = 1;
};

// The stack of `projection` as (n, k) linears. expert: must be one of those stacked.
Result<StackedLinear> ClassifyStack(const Checkpoint& checkpoint, std::string_view experts,
                                    int64_t expert, Projection projection, int64_t n, int64_t k,
                                    const ExpertLayout& layout);

// Codes and scales of one expert. Scalars and values are the caller's to set and check.
Result<LinearData> ReadStack(const Checkpoint& checkpoint, const StackedLinear& linear,
                             int64_t expert);

// The same as QuantView.made_up; none where it is stored, or does not lie in rows.
std::optional<LinearData> MakeUpStack(const Checkpoint& checkpoint, const StackedLinear& linear,
                                      int64_t expert);

// Element of a scalar that may be one for all, (E), (E, 1) or, for a pair, (E, 2).
Result<int64_t> ScalarIndex(const Checkpoint& checkpoint, const TensorEntry& entry,
                            const StackedLinear& linear, Projection projection, int64_t expert);

}  // namespace nibble::formats
