// A checkpoint without files: a config.json alone gives every tensor of the architecture's weight
// table, with values that are a pure function of (seed, tensor name, element index). For measuring
// full-size models and for tests.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "tensor/quant_view.h"

namespace nibble::models {

struct DummyOptions {
  WeightFormat linear_format =
      WeightFormat::kNvfp4;  // kNvfp4 or kBf16: of every linear but embedding and lm_head
  uint64_t seed = 1;
  bool draft = false;  // with the MTP module, if the architecture has one
};

// Linears have a standard deviation near 1/√K, norms lie around 1. Tensors are made on Read and not
// kept.
Result<std::unique_ptr<formats::Checkpoint>> MakeDummyCheckpoint(const boost::json::object& config,
                                                                 const DummyOptions& options = {});

}  // namespace nibble::models
