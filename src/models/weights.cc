#include "models/weights.h"

#include "base/check.h"
#include "models/layers/block.h"

namespace nibble::models {
namespace {

// Where a result goes, in either type.
struct Destination {
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t stride = 0;
  bool add = false;
  const kernels::Activation* activation = nullptr;
  kernels::ActivationLayout layout;
};

// A segment's part of all m rows.
kernels::LinearParams ParamsOf(const Linear& linear, const Linear::Segment& segment,
                               const LayerInput& in, int64_t m, const Destination& out) {
  const int64_t row = segment.first_row;
  return {.x = in.x,
          .x_stride = linear.k,
          .x_layout = in.layout,
          .norm = in.norm,
          .weight = segment.weight.get(),
          .bias = linear.bias.empty() ? nullptr : linear.bias.data() + row,
          .y = out.y == nullptr ? nullptr : out.y + row,
          .y_f32 = out.y_f32 == nullptr ? nullptr : out.y_f32 + row,
          .y_stride = out.stride,
          .y_layout = out.layout,
          .add = out.add,
          .activation = out.activation,
          .m = m};
}

void RunSegments(const Linear& linear, const kernels::OpTable& ops,
                 const kernels::OpContext& context, const LayerInput& in, int64_t m,
                 const Destination& out) {
  linear.Observe(ops, context, in, m);
  for (const Linear::Segment& segment : linear.segments)
    ops.linear(context, ParamsOf(linear, segment, in, m, out));
}

// The rows of `run` alone.
kernels::LinearParams OfRun(kernels::LinearParams params, const RowRun& run) {
  params.x += run.first * params.x_stride;
  if (params.y != nullptr) params.y += run.first * params.y_stride;
  if (params.y_f32 != nullptr) params.y_f32 += run.first * params.y_stride;
  params.m = run.count;
  return params;
}

// What multiplies tokens of prompts; null: what multiplies all others.
using LinearOp = void (*)(const kernels::OpContext&, const kernels::LinearParams&);
LinearOp OpOfPrompts(const StepContext& step, const kernels::PackedWeight& weight) {
  if (step.prompt_forms.w4a4 && weight.input_scale() > 0.0f) return step.ops.linear_w4a4;
  if (step.prompt_forms.fp8 && weight.fp8().group > 0) return step.ops.linear_fp8;
  return nullptr;
}

void RunSegments(const Linear& linear, const StepContext& step, const LayerInput& in,
                 const Destination& out) {
  if (!step.has_prompts()) return RunSegments(linear, step.ops, step.context, in, step.t, out);
  linear.Observe(step.ops, step.context, in, step.t);
  for (const Linear::Segment& segment : linear.segments) {
    const kernels::LinearParams params = ParamsOf(linear, segment, in, step.t, out);
    const LinearOp of_prompts = OpOfPrompts(step, *segment.weight);
    if (of_prompts == nullptr) {
      step.ops.linear(step.context, params);
      continue;
    }
    for (const RowRun& run : step.runs)
      (run.prompt ? of_prompts : step.ops.linear)(step.context, OfRun(params, run));
  }
}

}  // namespace

// Calibration runs on the host and may take its time: it norms what the op will norm again.
void Linear::Observe(const kernels::OpTable& ops, const kernels::OpContext& context,
                     const LayerInput& in, int64_t m) const {
  if (observer == nullptr) return;
  if (in.norm.weight == nullptr) return Observe(in.x, m);
  std::vector<uint16_t> normed(in.x, in.x + m * k);
  ops.rms_norm(context, {.x = normed.data(),
                         .weight = in.norm.weight,
                         .out = normed.data(),
                         .t = m,
                         .d = k,
                         .eps = in.norm.eps,
                         .style = in.norm.style});
  Observe(normed.data(), m);
}

void Linear::Run(const kernels::OpTable& ops, const kernels::OpContext& context,
                 const LayerInput& in, int64_t m, const LayerOutput& out) const {
  RunSegments(*this, ops, context, in, m, {.y = out.y, .stride = n, .add = out.add});
}

void Linear::Run(const StepContext& step, const LayerInput& in, const LayerOutput& out) const {
  RunSegments(*this, step, in, {.y = out.y, .stride = n, .add = out.add});
}

void Linear::RunActivated(const StepContext& step, const LayerInput& in,
                          const kernels::Activation& activation, uint16_t* y,
                          kernels::ActivationLayout y_layout) const {
  RunSegments(*this, step, in,
              {.y = y, .stride = n / 2, .activation = &activation, .layout = y_layout});
}

// Rows, where roles divide them, several weights read them, or somebody looks at them.
kernels::ActivationLayout Linear::XLayout(const StepContext& step) const {
  if (step.ops.x_layout == nullptr || step.has_prompts() || segments.size() != 1 ||
      observer != nullptr)
    return {};
  return step.ops.x_layout(*segments[0].weight, step.t);
}

void Linear::RunF32(const StepContext& step, const LayerInput& in, float* y) const {
  RunSegments(*this, step, in, {.y_f32 = y, .stride = n});
}

void Linear::RunF32(const kernels::OpTable& ops, const kernels::OpContext& context,
                    const LayerInput& in, int64_t m, float* y, int64_t y_stride) const {
  RunSegments(*this, ops, context, in, m, {.y_f32 = y, .stride = y_stride > 0 ? y_stride : n});
}

void RunPair(const StepContext& step, const LayerInput& in, const Linear& first, uint16_t* y,
             const Linear& second, float* y_f32) {
  const bool alike = first.segments.size() == 1 && second.segments.size() == 1;
  if (step.ops.linear_pair == nullptr || step.has_prompts() || !alike) {
    first.Run(step, in, {y});
    return second.RunF32(step, in, y_f32);
  }
  first.Observe(step.ops, step.context, in, step.t);
  second.Observe(step.ops, step.context, in, step.t);
  step.ops.linear_pair(
      step.context,
      {.first = ParamsOf(first, first.segments[0], in, step.t, {.y = y, .stride = first.n}),
       .second =
           ParamsOf(second, second.segments[0], in, step.t, {.y_f32 = y_f32, .stride = second.n})});
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
