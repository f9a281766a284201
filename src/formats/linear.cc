// Which tensors make up a linear, in which format, and its view: Checkpoint::ReadLinear and kin.
//
// A linear is identified by the dtypes and companions that are stored. Conventions told apart here:
//   ModelOpt            weight, weight_scale, weight_scale_2, input_scale     (multipliers)
//   compressed-tensors  weight_packed, weight_scale, weight_global_scale,
//                       input_global_scale                                    (divisors)
//   DeepSeek, Qwen FP8  weight, weight_scale_inv (multiplied, despite its name)
//   transformers FP8    ... with activation_scale
#include <array>
#include <utility>

#include "base/log.h"
#include "formats/checkpoint.h"
#include "formats/float_tensor.h"
#include "formats/json_file.h"
#include "formats/linear_values.h"
#include "formats/quantization_config.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::formats {
namespace {

// The tensors of one linear; shapes are checked, values are not.
struct LinearParts {
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0;
  int64_t k = 0;
  int64_t scale_block_n = 1;
  int64_t scale_block_k = 1;
  const TensorEntry* weight = nullptr;
  const TensorEntry* scale = nullptr;
  const TensorEntry* global_scale = nullptr;
  const TensorEntry* input_scale = nullptr;
  bool scalars_are_divisors = false;  // global and input scale
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool IsE8M0(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8M0; }

class Classifier {
 public:
  Classifier(const Checkpoint& checkpoint, std::string_view prefix)
      : checkpoint_(checkpoint), prefix_(prefix) {}

  Result<LinearParts> Classify() {
    const TensorEntry* weight = Find("weight");
    const TensorEntry* packed = Find("weight_packed");
    if (weight != nullptr && packed != nullptr) {
      return Fail(Code::kCorruption, "{}: {} has both weight and weight_packed, expected one",
                  checkpoint_.path(), Quoted(prefix_));
    }
    NIBBLE_TRY(RefuseExtras());
    if (packed != nullptr) return ClassifyPacked(*packed);
    if (weight != nullptr) return ClassifyWeight(*weight);
    return FailAbsent();
  }

 private:
  const TensorEntry* Find(std::string_view suffix) const {
    return checkpoint_.Find(std::string(prefix_) + "." + std::string(suffix));
  }

  tl::unexpected<Error> FailTensor(Code code, const TensorEntry& entry, std::string_view expected) {
    return Fail(code, "{}: tensor {}: {} {}, expected {}", checkpoint_.path(), Quoted(entry.name),
                DTypeName(entry.dtype), entry.shape.ToString(), expected);
  }

  tl::unexpected<Error> FailMissing(const TensorEntry& entry, std::string_view companion) {
    return Fail(Code::kCorruption, "{}: tensor {}: {} needs {}.{}, which is missing",
                checkpoint_.path(), Quoted(entry.name), DTypeName(entry.dtype), prefix_, companion);
  }

  // Tensors that change what the weight means and that no kernel applies.
  Status RefuseExtras() const {
    for (const std::string_view suffix :
         {"pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b"}) {
      const TensorEntry* extra = Find(suffix);
      if (extra == nullptr) continue;
      return Fail(Code::kUnsupported,
                  "{}: tensor {}: NVFP4_AWQ and NVFP4_SVD exports that keep {} are not supported; "
                  "export with plain NVFP4",
                  checkpoint_.path(), Quoted(extra->name), suffix);
    }
    return {};
  }

  tl::unexpected<Error> FailAbsent() const {
    if (const TensorEntry* words = Find("qweight")) {
      return Fail(Code::kUnsupported, "{}: tensor {}: AWQ and GPTQ weights are not supported",
                  checkpoint_.path(), Quoted(words->name));
    }
    return Fail(Code::kNotFound, "{}: no tensor {}.weight or {}.weight_packed", checkpoint_.path(),
                prefix_, prefix_);
  }

  Result<LinearParts> ClassifyPacked(const TensorEntry& packed) {
    if (packed.dtype == DType::kI32) {
      return Fail(Code::kUnsupported,
                  "{}: tensor {}: integer pack-quantized weights (INT4, INT8) "
                  "are not supported",
                  checkpoint_.path(), Quoted(packed.name));
    }
    if (packed.dtype != DType::kU8) return FailTensor(Code::kCorruption, packed, "U8 (N, K/2)");
    const TensorEntry* scale = Find("weight_scale");
    if (scale == nullptr) return FailMissing(packed, "weight_scale");
    if (IsE8M0(scale->dtype)) return Mxfp4(packed, *scale);
    const TensorEntry* global_scale = Find("weight_global_scale");
    if (global_scale == nullptr) return FailMissing(packed, "weight_global_scale");
    NIBBLE_ASSIGN(LinearParts parts, Nvfp4(packed, *scale, *global_scale));
    parts.scalars_are_divisors = true;
    NIBBLE_TRY(SetInputScale(parts, {"input_global_scale"}));
    return parts;
  }

  Result<LinearParts> ClassifyWeight(const TensorEntry& weight) {
    switch (weight.dtype) {
      case DType::kU8:
        return ClassifyBytes(weight);
      case DType::kF8E4M3:
        return Fp8(weight);
      case DType::kBF16:
        return Wide(weight, WeightFormat::kBf16);
      case DType::kF16:
        return Wide(weight, WeightFormat::kF16);
      case DType::kF32:
        return Wide(weight, WeightFormat::kF32);
      default:
        return FailTensor(Code::kUnsupported, weight,
                          "U8 (NVFP4, MXFP4), F8_E4M3, BF16, F16 or F32");
    }
  }

  // ModelOpt's 4-bit formats.
  Result<LinearParts> ClassifyBytes(const TensorEntry& weight) {
    const TensorEntry* scale = Find("weight_scale");
    if (scale == nullptr) return FailMissing(weight, "weight_scale");
    if (IsE8M0(scale->dtype)) return Mxfp4(weight, *scale);
    if (IsFloat(scale->dtype)) {
      return Fail(Code::kUnsupported, "{}: tensor {}: ModelOpt's INT4 weights are not supported",
                  checkpoint_.path(), Quoted(weight.name));
    }
    const TensorEntry* global_scale = Find("weight_scale_2");
    if (global_scale == nullptr) return FailMissing(weight, "weight_scale_2");
    NIBBLE_ASSIGN(LinearParts parts, Nvfp4(weight, *scale, *global_scale));
    NIBBLE_TRY(SetInputScale(parts, {"input_scale"}));
    return parts;
  }

  Result<LinearParts> Nvfp4(const TensorEntry& weight, const TensorEntry& scale,
                            const TensorEntry& global_scale) {
    NIBBLE_ASSIGN(LinearParts parts, Blocks(WeightFormat::kNvfp4, kNvfp4Block, weight, scale));
    if (scale.dtype != DType::kF8E4M3) return FailTensor(Code::kCorruption, scale, "F8_E4M3");
    if (!IsFloat(global_scale.dtype) || global_scale.shape.elements() != 1) {
      return FailTensor(Code::kCorruption, global_scale, "a F32 scalar, [] or [1]");
    }
    parts.global_scale = &global_scale;
    return parts;
  }

  Result<LinearParts> Mxfp4(const TensorEntry& weight, const TensorEntry& scale) {
    NIBBLE_ASSIGN(LinearParts parts, Blocks(WeightFormat::kMxfp4, kMxfp4Block, weight, scale));
    NIBBLE_TRY(SetInputScale(parts, {"input_scale"}));
    return parts;
  }

  // weight (N, K/2) and scale (N, K/block) of a format with `block` codes along K per scale.
  Result<LinearParts> Blocks(WeightFormat format, int64_t block, const TensorEntry& weight,
                             const TensorEntry& scale) {
    NIBBLE_TRY(CheckMatrix(weight));
    LinearParts parts;
    parts.format = format;
    parts.n = weight.shape[0];
    parts.k = weight.shape[1] * 2;
    parts.weight = &weight;
    parts.scale = &scale;
    parts.scale_block_k = block;
    if (parts.k % block != 0) {
      return FailTensor(
          Code::kCorruption, weight,
          fmt::format("{} bytes per row to be a multiple of {}: K = {} must be one "
                      "of {} for {}",
                      weight.shape[1], block / 2, parts.k, block, WeightFormatName(format)));
    }
    if (scale.shape != Shape{parts.n, parts.k / block}) {
      return FailTensor(Code::kCorruption, scale,
                        fmt::format("[{}, {}] beside {} {}", parts.n, parts.k / block,
                                    Quoted(weight.name), weight.shape.ToString()));
    }
    return parts;
  }

  Result<LinearParts> Wide(const TensorEntry& weight, WeightFormat format) {
    NIBBLE_TRY(CheckMatrix(weight));
    LinearParts parts;
    parts.format = format;
    parts.n = weight.shape[0];
    parts.k = weight.shape[1];
    parts.weight = &weight;
    return parts;
  }

  Result<LinearParts> Fp8(const TensorEntry& weight) {
    NIBBLE_ASSIGN(LinearParts parts, Wide(weight, WeightFormat::kFp8));
    const TensorEntry* scale = Find("weight_scale_inv");
    const TensorEntry* plain_scale = Find("weight_scale");
    if (scale != nullptr && plain_scale != nullptr) {
      return Fail(Code::kCorruption,
                  "{}: {} has both weight_scale and weight_scale_inv, expected "
                  "one",
                  checkpoint_.path(), Quoted(prefix_));
    }
    if (scale == nullptr) scale = plain_scale;
    if (scale == nullptr) return FailMissing(weight, "weight_scale or weight_scale_inv");
    if (!IsFloat(scale->dtype) && !IsE8M0(scale->dtype)) {
      return FailTensor(Code::kCorruption, *scale, "F32, BF16, F16, or E8M0 as U8 or F8_E8M0");
    }
    parts.scale = scale;
    NIBBLE_TRY(SetFp8Blocks(parts));
    NIBBLE_TRY(SetInputScale(parts, {"input_scale", "activation_scale"}));
    return parts;
  }

  // Per tensor, per channel or per block, from the scale's shape. Block sizes that the shape leaves
  // open come from the config, else from the sizes that producers use.
  Status SetFp8Blocks(LinearParts& parts) {
    const Shape& shape = parts.scale->shape;
    const int64_t n = parts.n;
    const int64_t k = parts.k;
    const auto set = [&parts](int64_t block_n, int64_t block_k) -> Status {
      parts.scale_block_n = block_n;
      parts.scale_block_k = block_k;
      return {};
    };
    if (shape.elements() == 1) return set(n, k);
    if (shape == Shape{n} || shape == Shape{n, 1}) return set(1, k);
    // ModelOpt's FP8_PB_WO keeps the reduced axes: (N/bn, 1, K/bk, 1).
    Shape grid = shape;
    if (shape.rank() == 4 && shape[1] == 1 && shape[3] == 1) grid = Shape{shape[0], shape[2]};
    if (grid.rank() == 2) {
      const auto [config_n, config_k] = ConfiguredFp8Block(checkpoint_.config());
      const std::array<std::pair<int64_t, int64_t>, 4> candidates = {
          {{config_n, config_k}, {128, 128}, {1, 128}, {1, 32}}};
      for (const auto& [block_n, block_k] : candidates) {
        if (block_n <= 0 || block_k <= 0) continue;
        if (grid == Shape{CeilDiv(n, block_n), CeilDiv(k, block_k)}) return set(block_n, block_k);
      }
    }
    return FailTensor(Code::kCorruption, *parts.scale,
                      fmt::format("a scalar, [{}], [{}, 1], or one scale per block of 128×128, "
                                  "[{}, {}], or of config.json's weight_block_size, beside {} {}",
                                  n, n, CeilDiv(n, 128), CeilDiv(k, 128),
                                  Quoted(parts.weight->name), parts.weight->shape.ToString()));
  }

  Status SetInputScale(LinearParts& parts, std::initializer_list<std::string_view> suffixes) {
    for (const std::string_view suffix : suffixes) {
      const TensorEntry* input = Find(suffix);
      if (input == nullptr) continue;
      if (!IsFloat(input->dtype) || input->shape.elements() != 1) {
        return FailTensor(Code::kCorruption, *input, "a F32 scalar, [] or [1]");
      }
      parts.input_scale = input;
    }
    return {};
  }

  Status CheckMatrix(const TensorEntry& weight) {
    if (weight.shape.rank() == 2 && weight.shape.elements() > 0) return {};
    return FailTensor(Code::kCorruption, weight, "a matrix with at least one element");
  }

  const Checkpoint& checkpoint_;
  std::string_view prefix_;
};

}  // namespace

Result<WeightFormat> Checkpoint::LinearFormat(std::string_view prefix) const {
  NIBBLE_ASSIGN(const LinearParts parts, Classifier(*this, prefix).Classify());
  return parts.format;
}

std::vector<std::string> Checkpoint::LinearTensors(std::string_view prefix) const {
  std::vector<std::string> names;
  const auto parts = Classifier(*this, prefix).Classify();
  if (!parts) return names;
  for (const TensorEntry* entry :
       {parts->weight, parts->scale, parts->global_scale, parts->input_scale}) {
    if (entry != nullptr) names.push_back(entry->name);
  }
  return names;
}

Result<LinearData> Checkpoint::ReadLinear(std::string_view prefix, int64_t n, int64_t k,
                                          bool check_values) const {
  NIBBLE_ASSIGN(const LinearParts parts, Classifier(*this, prefix).Classify());
  if ((n != 0 && n != parts.n) || (k != 0 && k != parts.k)) {
    return Fail(Code::kCorruption,
                "{}: tensor {}: {} {} is a {} linear with N = {}, K = {}; the architecture needs "
                "N = {}, K = {}",
                path_, Quoted(parts.weight->name), DTypeName(parts.weight->dtype),
                parts.weight->shape.ToString(), WeightFormatName(parts.format), parts.n, parts.k,
                n == 0 ? parts.n : n, k == 0 ? parts.k : k);
  }
  NIBBLE_ASSIGN(const TensorData weight, Read(*parts.weight));
  LinearData linear;
  linear.owner = weight.owner;
  linear.view.format = parts.format;
  linear.view.n = parts.n;
  linear.view.k = parts.k;
  linear.view.data = weight.view.data;
  linear.view.scale_block_n = parts.scale_block_n;
  linear.view.scale_block_k = parts.scale_block_k;
  if (parts.scale != nullptr) {
    NIBBLE_ASSIGN(const TensorData scale, Read(*parts.scale));
    linear.view.scales = scale.view.data;
    linear.view.scale_dtype = parts.scale->dtype;
    if (scale.owner != linear.owner) {
      using Owners = std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>;
      linear.owner = std::make_shared<const Owners>(linear.owner, scale.owner);
    }
  }
  if (parts.global_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, ReadScalar(*parts.global_scale));
    NIBBLE_TRY(InTensor(*parts.global_scale,
                        SetGlobalScale(stored, parts.scalars_are_divisors, &linear.view)));
    WarnOfGlobalScale(*parts.global_scale, linear.view);
  }
  if (parts.input_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, ReadScalar(*parts.input_scale));
    NIBBLE_TRY(InTensor(*parts.input_scale,
                        SetInputScale(stored, parts.scalars_are_divisors, &linear.view)));
  }
  if (check_values && parts.scale != nullptr) {
    NIBBLE_TRY(InTensor(*parts.scale, CheckScaleValues(linear.view)));
  }
  return linear;
}

Status Checkpoint::InTensor(const TensorEntry& entry, Status status) const {
  if (status) return status;
  return tl::unexpected<Error>(
      status.error().Context(fmt::format("{}: tensor {}", path_, Quoted(entry.name))));
}

void Checkpoint::WarnOfGlobalScale(const TensorEntry& entry, const QuantView& view) const {
  if (!IsUnlikelyGlobalScale(view) || warned_of_global_scale_.test_and_set()) return;
  LogWarning(
      "{}: tensor {}: the multiplier {} is outside 1e-9 to 1; if answers are noise, the file has a "
      "divisor where its names promise a multiplier, or the reverse",
      path_, Quoted(entry.name), view.global_scale);
}

}  // namespace nibble::formats
