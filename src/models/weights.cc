#include "models/weights.h"

namespace nibble::models {
namespace {

template <typename Out>
void RunSegments(const Linear& linear, const kernels::OpTable& ops,
                 const kernels::OpContext& context, const uint16_t* x, int64_t m, Out* y) {
  if (linear.observer != nullptr) linear.observer->OnInput(linear.modules, x, m, linear.k);
  for (const Linear::Segment& segment : linear.segments) {
    kernels::LinearParams params{
        .x = x,
        .x_stride = linear.k,
        .weight = segment.weight.get(),
        .bias = linear.bias.empty() ? nullptr : linear.bias.data() + segment.first_row,
        .y_stride = linear.n,
        .m = m};
    if constexpr (std::is_same_v<Out, float>) {
      params.y_f32 = y + segment.first_row;
    } else {
      params.y = y + segment.first_row;
    }
    ops.linear(context, params);
  }
}

}  // namespace

void Linear::Run(const kernels::OpTable& ops, const kernels::OpContext& context, const uint16_t* x,
                 int64_t m, uint16_t* y) const {
  RunSegments(*this, ops, context, x, m, y);
}

void Linear::RunF32(const kernels::OpTable& ops, const kernels::OpContext& context,
                    const uint16_t* x, int64_t m, float* y) const {
  RunSegments(*this, ops, context, x, m, y);
}

}  // namespace nibble::models
