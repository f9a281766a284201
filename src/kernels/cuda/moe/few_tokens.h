// The experts' arithmetic for up to kFewTokens tokens and weights of one 4-bit format, in two
// launches. Every block of both finds the groups of an expert and its tokens by itself
// (few_choice.cuh): no launch is spent on lists.
//
//   router -> logits -> ChooseForTokens -> ids -> FewGateUp: FC1, activation -> h -> FewDown: FC2,
//                                                                                sum -> out
//   up to kBesideTokens tokens: router -> logits -> FewGateUp -> h -> FewDown
//
// A warp sums whole rows: gate and up of 16 outputs side by side, or down of 16 outputs of an
// expert. All slices of a row tile meet in its registers, in order.
//
// FewDown reads the choice, or logits, before its own wait: it starts only when every block of
// FewGateUp has let it, and these do so after their wait, when what came before has ended and what
// it wrote is there. So its first weights come while FewGateUp still runs.
#pragma once

#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

NIBBLE_HD constexpr int RoundUp(int value, int unit) { return (value + unit - 1) / unit * unit; }

inline constexpr int kFewTokens = 64;
inline constexpr int kFewExperts = 512;
// Warps of a block; more where it has a multiprocessor to itself and has been faster so.
inline constexpr int kFewWarps = 8;
inline constexpr int kMoreWarps = 12;
// Rows of a group: what one MMA takes.
inline constexpr int kFewRows = 8;
// Up to so many tokens a block of each kernel shares a multiprocessor, and both choose by
// themselves. With more, FewDown's ring would be too short; it then starts when FewGateUp's blocks
// have ended, and a choice before its first copies would not be hidden.
inline constexpr int kBesideTokens = 3;
// Handed to the kernels by value: small, as they read it from a cold cache.
struct FewParams {
  const float* logits = nullptr;         // (T, E)
  const float* shared_logits = nullptr;  // (T) or null: weight 1
  Routing routing;
  int32_t t = 0;  // 1..kFewTokens
  int32_t d = 0;
  int32_t f = 0;
  int32_t shared_f = 0;                       // 0: no shared expert
  const std::byte* const* gate_up = nullptr;  // (E), on the device: row tile 0; null: not held
  const std::byte* const* down = nullptr;
  const Expert* experts = nullptr;  // (E), on the device
  const uint16_t* x = nullptr;      // (T, D)
  // Rows of tokens of an expert, the shared one's last (of one token: one_token.h); zeros up to a
  // multiple of 64.
  uint16_t* h = nullptr;
  int64_t h_stride = 0;
  uint16_t* out = nullptr;  // (T, D), or
  float* out_f32 = nullptr;
  bool add = false;     // to out
  bool biased = false;  // experts may have biases
  Activation activation;
  Expert shared;
  // Of several tokens:
  const int32_t* chosen = nullptr;       // (T, top_k), ascending
  const float* chosen_weight = nullptr;  // (T, top_k)
};

// What the host knows of the weights.
struct FewSets {
  WeightSet gate_up, down;                // of routed experts
  WeightSet shared_gate_up, shared_down;  // empty: none
  bool stacked = false;                   // gate and up are one weight, everywhere
  bool all_held = false;                  // by this rank
};

// Whether these experts and tokens can go this way; D is a multiple of 64 and x aligned.
bool FewTakes(const FewParams& params, const FewSets& sets);
bool FewDownFits(const FewParams& params, const FewSets& sets);
// Of a block of FewGateUp.
int64_t FewGateUpSharedBytes(const FewParams& params, const FewSets& sets);

void FewGateUp(const OpContext& context, const FewParams& params, const FewSets& sets);
void FewDown(const OpContext& context, const FewParams& params, const FewSets& sets);

}  // namespace nibble::kernels::cuda::moe
