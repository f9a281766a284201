// Where the time of a decode step goes, op by op (nibble bench model --profile): on a GPU, where
// neighbours overlap inside a recorded step, what the step loses when all calls of an op are left
// out; on the host, what they take (kernels::OpProbe). Beside it the bytes that they read.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "apps/bench_round.h"
#include "kernels/op_probe.h"

namespace nibble::apps {

struct OpCost {
  std::string op;      // with its shape
  double calls = 0;    // per step
  double seconds = 0;  // that they cost a step
  double bytes = 0;    // that they read
};

struct StepProfile {
  BenchShape shape;
  double step_seconds = 0;
  std::vector<OpCost> ops;  // the costliest first
};

// `probe` is of the table that the engine's model runs on; it passes everything on afterwards.
Result<StepProfile> ProfileDecode(engine::Engine& engine, kernels::OpProbe& probe,
                                  const BenchSampling& sampling, const BenchShape& shape,
                                  int64_t answer);

// Experts that a decode step of `batch` hits per layer of experts, in the mean; 0 where the model
// has none.
Result<double> CountExperts(engine::Engine& engine, kernels::OpProbe& probe, int32_t batch);

boost::json::object ToJson(const StepProfile& profile, double read_bytes_per_second);
void Print(const StepProfile& profile, double read_bytes_per_second);

}  // namespace nibble::apps
