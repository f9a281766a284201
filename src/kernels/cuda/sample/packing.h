// The host's side of sampling: a group of rows as the bytes that are uploaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/sample/layout.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::sampling {

// Room that any one row needs, whatever it asks for.
int64_t MaxUploadBytes(int64_t vocab);

struct PackedGroup {
  int32_t rows = 0;   // taken from the front
  bool plain = true;  // every row takes its best token
  int32_t end = 0;    // before this one
  int32_t searches = 0;
  int64_t bytes = 0;  // to upload: rows, searches, edits; of plain rows 0
  int64_t searches_at = 0;
  int64_t edits_at = 0;
  bool histogram = false;  // whether some search limits k or mass
};

// As many rows as fit: at most kMaxGroup, their upload in `room` bytes.
PackedGroup FormGroup(std::span<const SampleRow> rows, int64_t vocab, int64_t max_top_logprobs,
                      int64_t room);
// The upload of rows that are not plain.
void Pack(std::span<const SampleRow> rows, int64_t vocab, int64_t max_top_logprobs,
          std::byte* upload, PackedGroup* group);

}  // namespace nibble::kernels::cuda::sampling
