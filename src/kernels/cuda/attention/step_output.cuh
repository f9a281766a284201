// From merged items to the attention's output, through the gate where there is one.
#pragma once

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/attention/step_problem.cuh"

namespace nibble::kernels::cuda {

// Where an item stands in the output, and what else its four numbers need: fetched ahead, as even
// parameters come from memory when they are first read.
template <KvFormat kFormat>
class StepOutput {
 public:
  __device__ __forceinline__ StepOutput(const StepProblem& p, int sequence, int kv_head, int slice)
      : p_(p), sequence_(sequence), kv_head_(kv_head), slice_(slice) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    g_ = lane / 4;
    query_ = lane % 4 * 2;
    out_ = p.out + (int64_t{sequence} * p.q_heads + Head(0)) * p.head_dim;
    head_dim_ = p.head_dim;
    value_scale_ = p.value_scale;
    sinks_ = p.sinks != nullptr ? p.sinks + Head(0) : nullptr;
    laid_out_ = p.places.data != nullptr;
    asm volatile("" : "+l"(out_), "+r"(head_dim_), "+f"(value_scale_), "+l"(sinks_));
  }

  // After the wait for the predecessor, whose work the gates are.
  __device__ __forceinline__ void FetchGates() {
    if (p_.gate == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (HasQuery(i % 2))
        gates_[i] = p_.gate[sequence_ * p_.gate_stride + int64_t{Head(i % 2)} * p_.head_dim +
                            StepDim<kFormat>(slice_, g_, i / 2)];
  }

  __device__ __forceinline__ void Store(const StepItem& item) const {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (!HasQuery(e)) continue;
      const float factor = OutputFactor(item.m[e], item.l[e],
                                        sinks_ != nullptr ? sinks_ + e : nullptr, value_scale_);
      uint16_t x[2];
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const float value = item.o[2 * which + e] * factor;
        x[which] = p_.gate == nullptr ? ToBf16(value)
                                      : ToBf16(TimesSigmoid(ptx::RoundBf16(value),
                                                            ptx::FirstBf16(gates_[2 * which + e])));
      }
      if (laid_out_) {
        StoreLaidOut(e, x);
        continue;
      }
      uint16_t* out = out_ + e * head_dim_;
      if constexpr (kFormat != KvFormat::kBf16) {
        *reinterpret_cast<uint32_t*>(out + StepDim<kFormat>(slice_, g_, 0)) = x[0] | uint32_t{x[1]}
                                                                                         << 16;
      } else {
        out[StepDim<kFormat>(slice_, g_, 0)] = x[0];
        out[StepDim<kFormat>(slice_, g_, 1)] = x[1];
      }
    }
  }

 private:
  __device__ __forceinline__ bool HasQuery(int e) const { return query_ + e < p_.heads_per_kv; }
  __device__ __forceinline__ int Head(int e) const {
    return kv_head_ * p_.heads_per_kv + query_ + e;
  }

  __device__ __forceinline__ void StoreLaidOut(int e, const uint16_t (&x)[2]) const {
    const int column = Head(e) * head_dim_ + StepDim<kFormat>(slice_, g_, 0);
    if constexpr (kFormat != KvFormat::kBf16) {
      *p_.places.Pair(sequence_, column) = x[0] | uint32_t{x[1]} << 16;
    } else {
      *p_.places.Element(sequence_, column) = x[0];
      *p_.places.Element(sequence_, column + 8) = x[1];
    }
  }

  const StepProblem& p_;
  int sequence_;
  int kv_head_;
  int slice_;
  int g_;
  int query_;
  uint16_t* out_;  // of the first query
  int head_dim_;
  bool laid_out_;
  float value_scale_;
  const float* sinks_;  // of the first query, or null
  uint16_t gates_[4] = {};
};

}  // namespace nibble::kernels::cuda
