// AWQ-style smoothing: columns of a weight that meet large activations are scaled up before they
// are quantised, and the activations down by the same factors, so that the error falls where the
// inputs are small.
//
//   x' = bf16(x * p),  W' = W / p,  p = bf16(1 / s),  s[j] = mean|x[j]|^alpha, centred on 1
//
// alpha is searched on the second moments of the inputs, and the winner is taken only if it lowers
// the output error on the sampled inputs themselves: p is then stored as pre_quant_scale. Source:
// AWQ (Lin et al. 2023), ModelOpt's NVFP4_AWQ for the form in which it is stored.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quantize/calibration.h"
#include "quantize/encoder.h"
#include "quantize/weight_rows.h"

namespace nibble::quantize {

// An encoder for weights whose largest magnitude is amax.
using EncoderFactory = std::function<std::unique_ptr<Encoder>(float amax, Method method)>;

// p (K) for weights that share the input, or empty if no smoothing lowers their output error under
// `method`. (The candidates are compared under kMax, which is fast and ranks them alike.)
std::vector<float> FindSmoothing(std::span<const WeightRows> weights, const InputStatistics& inputs,
                                 const EncoderFactory& encoder, Method method, ThreadPool& pool);

// The largest magnitude of the weights' rows after their division by `multipliers` (K).
float LargestScaled(std::span<const WeightRows> weights, std::span<const float> multipliers,
                    ThreadPool& pool);

}  // namespace nibble::quantize
