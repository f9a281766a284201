// The list of architectures. A model file ends with
//
//   const Registration kRegistration({.architectures = {"LlamaForCausalLM"}, .make = &Make,
//   .tiny_config = R"({...})"});
//
// and nothing else has to know about it. Filled before main; immutable afterwards.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "models/model.h"
#include "models/weights.h"

namespace nibble::models {

// What a model file implements: a Model that can walk its weight table.
class LoadableModel : public Model {
 public:
  // Calls the visitor for every weight, in load order.
  virtual void VisitWeights(WeightVisitor& visitor) = 0;
  // After the weights are there: tables and other derived data. max_positions as in LoadOptions,
  // already resolved.
  virtual Status FinishLoad(const kernels::OpTable& ops, ThreadPool* pool,
                            int64_t max_positions) = 0;
  virtual ModelInfo& mutable_info() = 0;
  // Entries of OpTable that Forward calls: one that the backend lacks is an error when the model
  // loads.
  virtual std::vector<std::string_view> RequiredOps() const = 0;
  // With has_draft(): a tensor that is stored where the checkpoint has an MTP module.
  virtual std::string draft_tensor() const { return ""; }
};

// How a model is built from a config, beyond the config itself.
struct BuildOptions {
  TensorParallel tp;
  bool draft = false;  // with the MTP module, if the architecture has one
};

struct Architecture {
  std::vector<std::string> architectures;  // of config.json
  // Reads config.json; no weights yet.
  Result<std::unique_ptr<LoadableModel>> (*make)(const boost::json::object& config,
                                                 const BuildOptions& options) = nullptr;
  // Awkward small sizes for the generic suite, divisible by 2 ranks; one or more JSON objects.
  std::vector<std::string> tiny_configs;
};

const std::vector<Architecture>& RegisteredArchitectures();

struct Registration {
  explicit Registration(Architecture architecture);
};

// By config.json's "architectures"; kUnsupported names what was asked and lists what exists.
Result<const Architecture*> FindArchitecture(const boost::json::object& config);

// FindArchitecture, then make.
Result<std::unique_ptr<LoadableModel>> BuildModel(const boost::json::object& config,
                                                  const BuildOptions& options = {});

}  // namespace nibble::models
