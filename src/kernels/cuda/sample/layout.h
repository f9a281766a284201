// What host and kernels of sampling share: descriptions of rows, and where things lie in the
// workspace. Rows go through in groups of at most kMaxGroup, so that the workspace stays bounded.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/op_params.h"
#include "numerics/host_device.h"

namespace nibble::kernels::cuda::sampling {

inline constexpr int64_t kChunk = 4096;  // tokens of a CTA
inline constexpr int64_t kMaxGroup = 64;
inline constexpr int kMaxChunks = 256;
inline constexpr int kBuckets = 2048;
inline constexpr int kMaxListed = 4096;       // ids that a search keeps
inline constexpr int kMaxTopLogprobs = 1024;  // of a row

inline int64_t Chunks(int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

// Added to a token's logit; runs of one token are added in order.
struct BiasEdit {
  int32_t token;
  float bias;
};
// A token that occurred; count 0: in the prompt alone.
struct CountEdit {
  int32_t token;
  int32_t count;
};

// Offsets are into the uploaded bytes.
struct Row {
  int64_t mask_at;  // -1: none
  int64_t bias_at;
  int64_t banned_at;
  int64_t counts_at;
  int32_t biases;
  int32_t banned;
  int32_t counts;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t changed;  // whether there are edits: then the row is read from `processed`
  int32_t end;      // tokens from here on are banned, in place of a list: padding of the vocabulary
  int32_t search;   // that draws the token; -1: the best one is taken
  int32_t unseen;   // place in `drawn` of one more token of the output; -1: none
};

// A search for the best tokens of a row: those that a draw chooses from, or the best raw ones.
struct Search {
  double uniform;
  float inverse_temperature;
  float top_p;
  float min_p;
  int32_t top_k;  // 0: all
  int32_t row;
  int32_t end;         // of the tokens that are looked at
  int32_t changed;     // of the row
  int32_t lists_best;  // not for a draw: lists the best top_k raw tokens
  int64_t top_at;      // of lists_best: place in the tops

  NIBBLE_HD bool limits_mass() const { return top_p < 1.0f; }
};

struct ChunkSurvey {
  uint64_t best_raw;      // rank keys (kernels.cuh); kNone: no token above -inf; kBroken
  uint64_t best;          // after the edits; kBroken as best_raw
  uint64_t best_allowed;  // raw ones that the mask allows, those at -inf included
  uint64_t hash_sum;      // of the chunk's terms (kernels/logits_hash.h)
  float raw_sum;          // of e^(raw - best raw of the chunk)
};

// Where a search cuts, as far as the histogram says.
struct Bounds {
  int32_t k_bucket;     // holds the last of the top k; kBuckets: no limit
  int32_t first;        // listed: [first, last] and k_bucket
  int32_t last;         // below first: nothing but k_bucket
  int32_t k_before;     // tokens before k_bucket
  uint64_t k_mass;      // their mass
  uint64_t first_mass;  // of the tokens before `first`
  uint64_t total_mass;
};

// The group's arrays on the device; R rows, S <= 2 R searches, C chunks.
struct Workspace {
  float* processed;          // (R, V)
  ChunkSurvey* surveys;      // (R, C)
  uint64_t* histogram_mass;  // (S, kBuckets)
  int32_t* histogram_count;  // (S, kBuckets)
  uint64_t* chunk_mass;      // (S, C)
  Bounds* bounds;            // (S)
  int32_t* listed;           // (S): how many ids were to be listed
  int32_t* list;             // (S, kMaxListed)
  int32_t* chosen;           // (R)
  int32_t* better;           // (R): raw tokens better than the chosen one
  int32_t* ranked_chunks;    // (R): chunks that have added to it
  std::byte* uploaded;       // rows, searches, edits
  int64_t uploaded_bytes;    // at most
};

// A group's kernels get this by value. Results and tops lie in host memory that the GPU writes,
// uploads in such that it reads.
struct Group {
  const float* logits;  // (R, V)
  int64_t stride;
  int32_t vocab;
  int32_t chunks;
  int32_t rows;
  int32_t searches;
  int32_t end;               // of all rows, where there is no table of them:
  const std::byte* uploads;  // in the host's memory; upload_bytes of them go to w.uploaded
  int64_t upload_bytes;
  const Row* row_table;        // (R); null: every row takes the best token before `end`
  const Search* search_table;  // (S)
  const std::byte* edits;      // what Row's offsets are relative to
  Workspace w;
  SampledToken* results;  // (R)
  int32_t* top_tokens;    // the group's, max_top_logprobs per row
  float* top_logprobs;
  int32_t* drawn;                 // of the caller, on the device
  const int32_t* drawn_slots;     // the same as drawn_slot on the device, or null
  int32_t drawn_slot[kMaxGroup];  // -1: none
};

}  // namespace nibble::kernels::cuda::sampling
