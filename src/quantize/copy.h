// CopyCheckpoint: any checkpoint in, a folder with the same names, shapes, formats and bytes out.
// What it is for: a checkpoint of made-up weights becomes files, of full size, to measure loading.
//
// Streams piece by piece, one file per thread, so that the disk's speed counts and not a thread's.
// The destination appears whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "formats/checkpoint.h"

namespace nibble::quantize {

struct CopyOptions {
  ThreadPool* pool = nullptr;  // required; the source must not use it
  int64_t max_file_bytes = int64_t{4} << 30;
  std::string tokenizer_json;       // where the source has no tokenizer; "": none
  bool replace = false;             // an existing destination
  bool quiet = false;               // no progress bar
  std::function<bool()> cancelled;  // asked between pieces; true ends with kCancelled
};

// Bytes of the tensors.
Result<int64_t> CopyCheckpoint(const formats::Checkpoint& source, const std::string& destination,
                               const CopyOptions& options);

}  // namespace nibble::quantize
