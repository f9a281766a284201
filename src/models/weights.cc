#include "models/weights.h"

#include "base/check.h"

namespace nibble::models {
namespace {

template <typename Out>
void RunSegments(const Linear& linear, const kernels::OpTable& ops,
                 const kernels::OpContext& context, const uint16_t* x, int64_t m, Out* y,
                 int64_t y_stride) {
  linear.Observe(x, m);
  for (const Linear::Segment& segment : linear.segments) {
    kernels::LinearParams params{
        .x = x,
        .x_stride = linear.k,
        .weight = segment.weight.get(),
        .bias = linear.bias.empty() ? nullptr : linear.bias.data() + segment.first_row,
        .y_stride = y_stride > 0 ? y_stride : linear.n,
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
  RunSegments(*this, ops, context, x, m, y, 0);
}

void Linear::RunF32(const kernels::OpTable& ops, const kernels::OpContext& context,
                    const uint16_t* x, int64_t m, float* y, int64_t y_stride) const {
  RunSegments(*this, ops, context, x, m, y, y_stride);
}

kernels::ExpertWeights ExpertOf(const Linear& gate_up, const Linear& down) {
  NIBBLE_CHECK(gate_up.segments.size() <= 2 && down.segments.size() == 1,
               "an expert of {} and {} segments", gate_up.segments.size(), down.segments.size());
  return {.gate_up = gate_up.segments[0].weight.get(),
          .up = gate_up.segments.size() == 2 ? gate_up.segments[1].weight.get() : nullptr,
          .down = down.segments[0].weight.get(),
          .gate_up_bias = gate_up.bias.empty() ? nullptr : gate_up.bias.data(),
          .down_bias = down.bias.empty() ? nullptr : down.bias.data()};
}

std::vector<kernels::ExpertWeights> ExpertTable(const ExpertsSpec& spec,
                                                const std::vector<Expert>& experts) {
  std::vector<kernels::ExpertWeights> table(spec.experts);
  for (size_t i = 0; i < experts.size(); ++i)
    table[spec.first + i] = ExpertOf(experts[i].gate_up, experts[i].down);
  return table;
}

std::string_view SectionName(Section section) {
  constexpr std::string_view kNames[kSections] = {
      "attention", "linear_attention", "ffn", "experts", "shared_expert", "head", "other", "draft"};
  return kNames[static_cast<int>(section)];
}

}  // namespace nibble::models
