#include "quantize/linear_output.h"

#include "base/check.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::quantize {
namespace {

using formats::TensorSpec;

template <typename T>
std::span<const std::byte> BytesOf(const T& values) {
  return std::as_bytes(std::span(values));
}

std::span<const std::byte> BytesOf(const float& value) {
  return std::as_bytes(std::span(&value, 1));
}

// What a layout stores for a scalar scale.
float Stored(float scale, Layout layout) {
  if (layout == Layout::kModelOpt) return scale;
  const float divisor = ExactDivisor(scale);
  return divisor > 0.0f ? divisor : 1.0f / scale;
}

std::string CodesName(const std::string& module, const Scheme& scheme, Layout layout) {
  const bool packed = layout == Layout::kCompressedTensors && scheme.format != Format::kFp8;
  return module + (packed ? ".weight_packed" : ".weight");
}

std::string TensorScaleName(const std::string& module, Layout layout) {
  return module + (layout == Layout::kModelOpt ? ".weight_scale_2" : ".weight_global_scale");
}

std::string InputScaleName(const std::string& module, Layout layout) {
  return module + (layout == Layout::kModelOpt ? ".input_scale" : ".input_global_scale");
}

TensorSpec CodesSpec(const std::string& name, int64_t n, int64_t k, Format format) {
  if (format == Format::kFp8) return {name, DType::kF8E4M3, {n, k}};
  if (format == Format::kInt4) return {name, DType::kI32, {n, k / 8}};
  return {name, DType::kU8, {n, k / 2}};
}

TensorSpec ScalesSpec(const std::string& name, int64_t n, int64_t k, const Scheme& scheme) {
  switch (scheme.format) {
    case Format::kNvfp4:
      return {name, DType::kF8E4M3, {n, k / kNvfp4Block}};
    case Format::kMxfp4:
      return {name, DType::kU8, {n, k / kMxfp4Block}};
    case Format::kInt4:
      return {name, DType::kBF16, {n, k / scheme.group}};
    case Format::kFp8:
    case Format::kBf16:
      break;
  }
  return {name, DType::kBF16, {n, 1}};
}

}  // namespace

std::vector<TensorSpec> LinearSpecs(const std::string& module, int64_t n, int64_t k,
                                    const Scheme& scheme, Layout layout) {
  std::vector<TensorSpec> specs = {
      CodesSpec(CodesName(module, scheme, layout), n, k, scheme.format),
      ScalesSpec(module + ".weight_scale", n, k, scheme)};
  const Shape scalar = layout == Layout::kModelOpt ? Shape{} : Shape{1};
  if (scheme.format == Format::kNvfp4)
    specs.push_back({TensorScaleName(module, layout), DType::kF32, scalar});
  if (scheme.activations) specs.push_back({InputScaleName(module, layout), DType::kF32, scalar});
  if (scheme.smoothed) specs.push_back({module + ".pre_quant_scale", DType::kF32, {k}});
  if (scheme.format == Format::kInt4) specs.push_back({module + ".weight_shape", DType::kI64, {2}});
  return specs;
}

Status WriteLinear(formats::ShardedWriter& writer, const std::string& module, int64_t n, int64_t k,
                   const Scheme& scheme, Layout layout, const EncodedLinear& linear) {
  NIBBLE_TRY(writer.Write(CodesName(module, scheme, layout), BytesOf(linear.codes)));
  NIBBLE_TRY(writer.Write(module + ".weight_scale", BytesOf(linear.scales)));
  if (scheme.format == Format::kNvfp4) {
    const float stored = Stored(linear.tensor_scale, layout);
    NIBBLE_TRY(writer.Write(TensorScaleName(module, layout), BytesOf(stored)));
  }
  if (scheme.activations) {
    const float stored =
        layout == Layout::kModelOpt ? linear.input_scale : 1.0f / linear.input_scale;
    NIBBLE_TRY(writer.Write(InputScaleName(module, layout), BytesOf(stored)));
  }
  if (scheme.smoothed)
    NIBBLE_TRY(writer.Write(module + ".pre_quant_scale", BytesOf(linear.pre_quant_scale)));
  if (scheme.format == Format::kInt4) {
    const int64_t shape[] = {n, k};
    NIBBLE_TRY(writer.Write(module + ".weight_shape", BytesOf(shape)));
  }
  return {};
}

}  // namespace nibble::quantize
