// The experts of a layer as kernels find them: a table on the device, and what the host must know
// to launch. Immutable.
#pragma once

#include <memory>
#include <span>

#include "device/buffer.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// What a linear's input goes through first; nothing where both are null.
struct InputTransform {
  const int32_t* order = nullptr;
  const float* multiplier = nullptr;
};

// up: of the rows of up, also where they are stacked in gate_up.
struct ExpertTransforms {
  InputTransform gate_up, up, down;
};

// One expert as the host sees it, and what it adds to the sets of both phases.
struct ExpertFacts {
  Expert expert;
  ExpertTransforms transforms;
  bool transforms_x = false;
  bool transforms_h = false;
};

ExpertFacts FactsOf(const ExpertWeights& weights);
void AddTo(const ExpertWeights& weights, WeightSet* gate_up, WeightSet* down);

class PreparedExperts final : public PreparedWeights {
 public:
  // kUnsupported: more than kMaxExperts, or weights too wide for the kernels' shared memory.
  static Result<std::unique_ptr<PreparedExperts>> Create(std::span<const ExpertWeights> experts,
                                                         Device& device);

  const Expert* experts() const { return table_.as<Expert>(); }  // (E), on the device
  const uint8_t* held() const { return held_.as<uint8_t>(); }    // (E), on the device: 0 or 1
  // (E), on the device: row tile 0 of the weights; null where not held.
  const std::byte* const* gate_up_data() const { return data_.as<const std::byte*>(); }
  const std::byte* const* down_data() const { return gate_up_data() + experts_; }
  // Gate and up are one weight, in all experts.
  bool stacked() const { return stacked_; }
  bool all_held() const { return all_held_; }
  bool biased() const { return biased_; }
  // (E), on the device; null where no input is transformed.
  const ExpertTransforms* transforms() const {
    return transforms_x_ || transforms_h_ ? transforms_.as<ExpertTransforms>() : nullptr;
  }
  // Whether all experts are here, alike, in NVFP4 with an input_scale, gate and up stacked.
  bool takes_w4a4() const { return takes_w4a4_; }
  // (E, 2), on the device, with takes_w4a4(): of gate_up, of down.
  const float* input_scales() const { return input_scales_.as<float>(); }
  bool transforms_x() const { return transforms_x_; }
  bool transforms_h() const { return transforms_h_; }
  const WeightSet& gate_up() const { return gate_up_; }
  const WeightSet& down() const { return down_; }

 private:
  PreparedExperts() = default;

  Buffer table_;
  Buffer data_;  // of gate and up, then of down
  int64_t experts_ = 0;
  bool stacked_ = true;
  bool all_held_ = true;
  bool biased_ = false;
  bool takes_w4a4_ = true;
  Buffer input_scales_;
  Buffer held_;
  Buffer transforms_;
  bool transforms_x_ = false;
  bool transforms_h_ = false;
  WeightSet gate_up_;
  WeightSet down_;
};

}  // namespace nibble::kernels::cuda::moe
