// A checkpoint without weights: a config.json alone gives every tensor of the architecture's weight
// table, in the formats that config.json and hf_quant_config.json name, under the names that their
// producer would give them. Values are a pure function of (seed, tensor name, element index): equal
// on every device, and what a rank takes is a slice of the same whole. For measuring full-size
// models and for tests.
//
// Tensors are made on Read, by part where only a part is asked for, and are not kept. Linears have
// a standard deviation near 1/√K, norms lie around 1. Thread-safety: as Checkpoint; with a pool,
// Read runs on it and is therefore for one thread at a time, outside its loops.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "formats/checkpoint.h"
#include "tensor/quant_view.h"

namespace nibble::models {

enum class DummyPolicy : uint8_t {
  kAsConfigured,
  // Every linear in 4 bits, lm_head and MTP modules too: as configured where that is so already,
  // else NVFP4. Only routers, gates of one row and the like stay wide (formats/weight_schemes.h).
  kAllFourBit
};

struct DummyOptions {
  DummyPolicy policy = DummyPolicy::kAsConfigured;
  // Instead of what the config says: every linear but embedding and lm_head. kNvfp4, kMxfp4, kFp8
  // (blocks of 128×128), kInt4 (groups of 128) or kBf16.
  std::optional<WeightFormat> linear_format;
  bool activation_scales = false;  // with linear_format kNvfp4: W4A4 can be had
  uint64_t seed = 2;
  int64_t layers = 0;  // the first so many alone, 0: all; weights are the same, whatever this is
  bool draft = false;  // with the MTP module, if the architecture has one
  // Makes tensors that are not small; null: the calling thread does, with helpers for huge ones.
  ThreadPool* pool = nullptr;
};

// hf_quant: hf_quant_config.json, null where there is none.
Result<std::unique_ptr<formats::Checkpoint>> MakeDummyCheckpoint(
    const boost::json::object& config, const DummyOptions& options = {},
    const boost::json::object* hf_quant = nullptr);

// Of a folder with config.json, whatever else it holds; its other text files are there to read. As
// published checkpoints do, it has the MTP module, whatever `options` say.
// quantization: a cross-check as formats::OpenOptions has it.
Result<std::unique_ptr<formats::Checkpoint>> OpenDummyCheckpoint(
    const std::string& folder, const DummyOptions& options = {},
    const std::string& quantization = "");

}  // namespace nibble::models
