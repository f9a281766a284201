// The experts' arithmetic for up to kFewTokens tokens and weights of one 4-bit format, in two
// launches after the router's. Every block of both works out for itself, from the logits, which
// experts the tokens go to (few_choice.cuh): no launch is spent on lists.
//
//   router -> logits -> FewGateUp: choice, FC1, activation -> h -> FewDown: choice, FC2, sum -> out
//
// FewDown reads the logits before its own wait: it starts only when every block of FewGateUp has
// let it, and these do so after their wait, when the router's launch has ended and what it wrote is
// there. So its first weights come while FewGateUp still runs.
#pragma once

#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/lists.h"
#include "kernels/ops.h"

namespace nibble::kernels::cuda::moe {

inline constexpr int kFewTokens = 8;
inline constexpr int kFewExperts = 512;
inline constexpr int kFewThreads = 512;
// Pairs of a token and a routed expert, at most: a thread each.
inline constexpr int kFewSlots = 256;

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
  // Rows of tokens of an expert, the shared one's first; zeros up to a multiple of 64.
  uint16_t* h = nullptr;
  int64_t h_stride = 0;
  uint16_t* out = nullptr;  // (T, D), or
  float* out_f32 = nullptr;
  bool add = false;     // to out
  bool biased = false;  // experts may have biases
  Activation activation;
  Expert shared;
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

void FewGateUp(const OpContext& context, const FewParams& params, const FewSets& sets);
void FewDown(const OpContext& context, const FewParams& params, const FewSets& sets);

}  // namespace nibble::kernels::cuda::moe
