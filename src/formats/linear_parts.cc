#include "formats/linear_parts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "formats/float_tensor.h"
#include "formats/json_file.h"
#include "formats/quantization_config.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::formats {
namespace {

constexpr int64_t kWordBits = 32;
constexpr int64_t kMaxSize = int64_t{1} << 31;  // of an axis that a tensor gives

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

bool IsE8M0(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8M0; }

// Columns per group of `groups` groups over k: the config's group size where it fits, else equal
// groups, else a power of two with a shorter last group. 0 if there is none.
int64_t GroupSize(const boost::json::object& config, int64_t k, int64_t groups) {
  if (groups <= 0 || groups > k) return 0;
  if (groups == 1) return k;
  for (const int64_t size : ConfiguredGroupSizes(config)) {
    if (size <= k && CeilDiv(k, size) == groups) return size;
  }
  if (k % groups == 0) return k / groups;
  for (int64_t size = 16; size < k; size *= 2) {
    if (CeilDiv(k, size) == groups) return size;
  }
  return 0;
}

class Classifier {
 public:
  Classifier(const Checkpoint& checkpoint, std::string_view prefix)
      : checkpoint_(checkpoint), prefix_(prefix), name_(std::string(prefix) + ".") {}

  Result<LinearParts> Classify() {
    const TensorEntry* weight = Find("weight");
    const TensorEntry* packed = Find("weight_packed");
    if (weight != nullptr && packed != nullptr) {
      return Fail(Code::kCorruption, "{}: {} has both weight and weight_packed, expected one",
                  checkpoint_.path(), Quoted(prefix_));
    }
    NIBBLE_TRY(RefuseExtras());
    NIBBLE_ASSIGN(LinearParts parts, packed != nullptr   ? ClassifyPacked(*packed)
                                     : weight != nullptr ? ClassifyWeight(*weight)
                                                         : ClassifyWords());
    NIBBLE_TRY(SetInputMultiplier(parts));
    return parts;
  }

 private:
  const TensorEntry* Find(std::string_view suffix) {
    name_.resize(prefix_.size() + 1);
    name_ += suffix;
    return checkpoint_.Find(name_);
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
  Status RefuseExtras() {
    for (const std::string_view suffix : {"svdquant_lora_a", "svdquant_lora_b"}) {
      const TensorEntry* extra = Find(suffix);
      if (extra == nullptr) continue;
      return Fail(Code::kUnsupported,
                  "{}: tensor {}: NVFP4_SVD exports keep {}, which is not supported; export with "
                  "plain NVFP4 or NVFP4_AWQ",
                  checkpoint_.path(), Quoted(extra->name), suffix);
    }
    return {};
  }

  // AWQ's smoothing, where the exporter could not fold it into what comes before.
  Status SetInputMultiplier(LinearParts& parts) {
    parts.input_multiplier = Find("pre_quant_scale");
    if (parts.input_multiplier == nullptr) return {};
    const TensorEntry& entry = *parts.input_multiplier;
    if (IsFloat(entry.dtype) && entry.shape.elements() == parts.k) return {};
    return FailTensor(Code::kCorruption, entry,
                      fmt::format("one float for each of the {} columns of {}", parts.k,
                                  Quoted(parts.weight->name)));
  }

  Result<LinearParts> ClassifyPacked(const TensorEntry& packed) {
    if (packed.dtype == DType::kI32) return PackedIntegers(packed);
    if (packed.dtype != DType::kU8)
      return FailTensor(Code::kCorruption, packed, "U8 (N, K/2), or I32 words of integers");
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
      case DType::kI8:
        return ClassifySignedBytes(weight);
      case DType::kBF16:
        return Wide(weight, WeightFormat::kBf16);
      case DType::kF16:
        return Wide(weight, WeightFormat::kF16);
      case DType::kF32:
        return Wide(weight, WeightFormat::kF32);
      default:
        return FailTensor(Code::kUnsupported, weight,
                          "U8 (NVFP4, MXFP4, INT4), I8, F8_E4M3, BF16, F16 or F32");
    }
  }

  // ModelOpt's 4-bit formats.
  Result<LinearParts> ClassifyBytes(const TensorEntry& weight) {
    const TensorEntry* scale = Find("weight_scale");
    if (scale == nullptr) return FailMissing(weight, "weight_scale");
    if (IsE8M0(scale->dtype)) return Mxfp4(weight, *scale);
    if (IsFloat(scale->dtype)) return PairsAlongN(weight, *scale);
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
      parts.scale_block_n = std::min(block_n, parts.n);
      parts.scale_block_k = std::min(block_k, parts.k);
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

  // --- integers ---

  // compressed-tensors: fields of 4 or 8 bits along K in words, K in weight_shape.
  Result<LinearParts> PackedIntegers(const TensorEntry& packed) {
    NIBBLE_TRY(CheckMatrix(packed));
    LinearParts parts;
    parts.layout = CodeLayout::kWordsAlongK;
    parts.weight = &packed;
    parts.scale = Find("weight_scale");
    if (parts.scale == nullptr) return FailMissing(packed, "weight_scale");
    parts.shape = Find("weight_shape");
    if (parts.shape == nullptr) return FailMissing(packed, "weight_shape");
    NIBBLE_TRY(SetStoredShape(parts));
    const int64_t words = packed.shape[1];
    int64_t bits = 0;
    for (const int64_t candidate : {8, 4}) {
      if (CeilDiv(parts.k * candidate, kWordBits) == words) bits = candidate;
    }
    if (bits == 0 || packed.shape[0] != parts.n) {
      return FailTensor(Code::kUnsupported, packed,
                        fmt::format("[{}, {}] (INT4) or [{}, {}] (INT8): {} says ({}, {}), and "
                                    "other widths are not supported",
                                    parts.n, CeilDiv(parts.k, 8), parts.n, CeilDiv(parts.k, 4),
                                    Quoted(parts.shape->name), parts.n, parts.k));
    }
    NIBBLE_TRY(SetIntegers(parts, bits));
    NIBBLE_TRY(SetGroups(parts, {parts.n, -1}));
    parts.zeros = Find("weight_zero_point");
    if (parts.zeros != nullptr) {
      NIBBLE_TRY(CheckCompanion(*parts.zeros, DType::kI32,
                                {CeilDiv(parts.n * bits, kWordBits), parts.groups()}, packed));
    }
    return WithGroupIndex(parts, "weight_g_idx");
  }

  // n and k out of weight_shape: two numbers, the only ones that a classification reads.
  Status SetStoredShape(LinearParts& parts) {
    const TensorEntry& shape = *parts.shape;
    if (shape.shape.elements() != 2 || (shape.dtype != DType::kI64 && shape.dtype != DType::kI32)) {
      return FailTensor(Code::kCorruption, shape, "two I64 or I32 numbers, N and K");
    }
    NIBBLE_ASSIGN(const TensorData data, checkpoint_.Read(shape));
    std::array<int64_t, 2> sizes{};
    for (size_t i = 0; i < 2; ++i) {
      if (shape.dtype == DType::kI64) {
        std::memcpy(&sizes[i], data.view.data + 8 * i, 8);
      } else {
        int32_t size;
        std::memcpy(&size, data.view.data + 4 * i, 4);
        sizes[i] = size;
      }
      if (sizes[i] <= 0 || sizes[i] > kMaxSize) {
        return Fail(Code::kCorruption, "{}: tensor {}: element {} is {}, expected 1 to {}",
                    checkpoint_.path(), Quoted(shape.name), i, sizes[i], kMaxSize);
      }
    }
    parts.n = sizes[0];
    parts.k = sizes[1];
    return {};
  }

  // INT8; or E2M1 pairs, as DeepSeek stores MXFP4 experts.
  Result<LinearParts> ClassifySignedBytes(const TensorEntry& weight) {
    for (const std::string_view suffix : {"weight_scale_inv", "scale"}) {
      const TensorEntry* scale = Find(suffix);
      if (scale != nullptr && scale->dtype == DType::kF8E8M0) return Mxfp4(weight, *scale);
    }
    return SignedBytes(weight);
  }

  // ModelOpt's and compressed-tensors' INT8: signed bytes (N, K).
  Result<LinearParts> SignedBytes(const TensorEntry& weight) {
    NIBBLE_ASSIGN(LinearParts parts, Wide(weight, WeightFormat::kInt8));
    parts.layout = CodeLayout::kSignedBytes;
    parts.scale = Find("weight_scale");
    if (parts.scale == nullptr) return FailMissing(weight, "weight_scale");
    const Shape& scales = parts.scale->shape;
    if (scales.elements() == 1 || scales == Shape{parts.n}) {
      NIBBLE_TRY(CheckFloat(*parts.scale));
      parts.scale_block_k = parts.k;
    } else {
      NIBBLE_TRY(SetGroups(parts, {parts.n, -1}));
    }
    parts.zeros = Find("weight_zero_point");
    if (parts.zeros != nullptr) {
      NIBBLE_TRY(CheckCompanion(*parts.zeros, DType::kI8, {parts.n, parts.groups()}, weight));
    }
    NIBBLE_TRY(SetInputScale(parts, {"input_scale"}));
    return parts;
  }

  // ModelOpt's INT4: bytes (N/2, K), each two rows of one column.
  Result<LinearParts> PairsAlongN(const TensorEntry& weight, const TensorEntry& scale) {
    NIBBLE_TRY(CheckMatrix(weight));
    LinearParts parts;
    parts.layout = CodeLayout::kPairsAlongN;
    parts.weight = &weight;
    parts.scale = &scale;
    parts.n = 2 * weight.shape[0];
    parts.k = weight.shape[1];
    NIBBLE_TRY(SetIntegers(parts, 4));
    NIBBLE_TRY(SetGroups(parts, {parts.n, -1}));
    // W4A8: the scale with which the kernel that ModelOpt has in mind brings weights to FP8.
    parts.unused = Find("weight_scale_2");
    NIBBLE_TRY(SetInputScale(parts, {"input_scale"}));
    return parts;
  }

  // AutoAWQ and GPTQ, told apart by shapes.
  Result<LinearParts> ClassifyWords() {
    const TensorEntry* words = Find("qweight");
    if (words == nullptr) {
      return Fail(Code::kNotFound, "{}: no tensor {}.weight, weight_packed or qweight",
                  checkpoint_.path(), prefix_);
    }
    LinearParts parts;
    parts.weight = words;
    parts.scale = Find("scales");
    if (parts.scale == nullptr) return FailMissing(*words, "scales");
    parts.zeros = Find("qzeros");
    if (parts.zeros == nullptr) return FailMissing(*words, "qzeros");
    const Shape& scales = parts.scale->shape;
    const bool are_matrices =
        words->shape.rank() == 2 && words->shape.elements() > 0 && scales.rank() == 2;
    if (words->dtype != DType::kI32 || !are_matrices) {
      return FailTensor(Code::kUnsupported, *words,
                        "an I32 matrix beside scales (groups, N); AWQ's gemv, gemv_fast and marlin "
                        "layouts are not supported");
    }
    parts.n = scales[1];
    if (words->shape[1] == parts.n) return Gptq(parts);
    if (words->shape[1] * 8 == parts.n) return Awq(parts);
    return FailTensor(
        Code::kUnsupported, *words,
        fmt::format("{} words per row (4-bit AWQ in its gemm layout) or {} (GPTQ) beside {} {}",
                    parts.n / 8, parts.n, Quoted(parts.scale->name), scales.ToString()));
  }

  Result<LinearParts> Awq(LinearParts parts) {
    parts.layout = CodeLayout::kAwq;
    parts.k = parts.weight->shape[0];
    NIBBLE_TRY(SetIntegers(parts, 4));
    NIBBLE_TRY(SetGroups(parts, {-1, parts.n}));
    NIBBLE_TRY(
        CheckCompanion(*parts.zeros, DType::kI32, {parts.groups(), parts.n / 8}, *parts.weight));
    return parts;
  }

  Result<LinearParts> Gptq(LinearParts parts) {
    parts.layout = CodeLayout::kGptq;
    const Shape& zeros = parts.zeros->shape;
    int64_t bits = 0;
    for (const int64_t candidate : {4, 8}) {
      if (zeros.rank() == 2 && zeros[1] * kWordBits == parts.n * candidate) bits = candidate;
    }
    if (bits == 0) {
      return FailTensor(Code::kUnsupported, *parts.zeros,
                        fmt::format("[groups, {}] (4-bit) or [groups, {}] (8-bit) for N = {}",
                                    parts.n / 8, parts.n / 4, parts.n));
    }
    parts.k = parts.weight->shape[0] * (kWordBits / bits);
    NIBBLE_TRY(SetIntegers(parts, bits));
    NIBBLE_TRY(SetGroups(parts, {-1, parts.n}));
    NIBBLE_TRY(CheckCompanion(*parts.zeros, DType::kI32,
                              {parts.groups(), parts.n * bits / kWordBits}, *parts.weight));
    return WithGroupIndex(parts, "g_idx");
  }

  Status SetIntegers(LinearParts& parts, int64_t bits) {
    parts.format = bits == 4 ? WeightFormat::kInt4 : WeightFormat::kInt8;
    if (parts.k > kMaxSize) {
      return FailTensor(Code::kUnsupported, *parts.weight, fmt::format("K up to {}", kMaxSize));
    }
    if (bits == 8 || parts.k % 2 == 0) return {};
    return FailTensor(Code::kUnsupported, *parts.weight,
                      fmt::format("an even K for 4-bit integers, K is {}", parts.k));
  }

  Status CheckFloat(const TensorEntry& scale) {
    if (IsFloat(scale.dtype)) return {};
    return FailTensor(Code::kCorruption, scale, "F32, BF16 or F16");
  }

  // Columns per group from the shape of the scales; -1 in `wanted` stands for the groups.
  Status SetGroups(LinearParts& parts, std::array<int64_t, 2> wanted) {
    const TensorEntry& scale = *parts.scale;
    NIBBLE_TRY(CheckFloat(scale));
    const size_t groups_axis = wanted[0] < 0 ? 0 : 1;
    if (scale.shape.rank() == 2) {
      const int64_t groups = scale.shape[static_cast<int>(groups_axis)];
      wanted[groups_axis] = groups;
      parts.scale_block_k = GroupSize(checkpoint_.config(), parts.k, groups);
      if (parts.scale_block_k > 0 && scale.shape == Shape{wanted[0], wanted[1]}) return {};
    }
    return FailTensor(
        Code::kCorruption, scale,
        fmt::format("{} with 1 to {} groups of equal size along K = {} beside {} {}",
                    groups_axis == 0 ? fmt::format("[groups, {}]", wanted[1])
                                     : fmt::format("[{}, groups]", wanted[0]),
                    parts.k, parts.k, Quoted(parts.weight->name), parts.weight->shape.ToString()));
  }

  Result<LinearParts> WithGroupIndex(LinearParts parts, std::string_view suffix) {
    parts.group_index = Find(suffix);
    if (parts.group_index != nullptr) {
      NIBBLE_TRY(CheckCompanion(*parts.group_index, DType::kI32, {parts.k}, *parts.weight));
    }
    return parts;
  }

  Status CheckCompanion(const TensorEntry& entry, DType dtype, const Shape& shape,
                        const TensorEntry& weight) {
    if (entry.dtype == dtype && entry.shape == shape) return {};
    return FailTensor(Code::kCorruption, entry,
                      fmt::format("{} {} beside {} {}", DTypeName(dtype), shape.ToString(),
                                  Quoted(weight.name), weight.shape.ToString()));
  }

  Status CheckMatrix(const TensorEntry& weight) {
    if (weight.shape.rank() == 2 && weight.shape.elements() > 0) return {};
    return FailTensor(Code::kCorruption, weight, "a matrix with at least one element");
  }

  const Checkpoint& checkpoint_;
  std::string_view prefix_;
  std::string name_;  // prefix, dot and the suffix that was looked for last
};

}  // namespace

Result<LinearParts> ClassifyLinear(const Checkpoint& checkpoint, std::string_view prefix) {
  return Classifier(checkpoint, prefix).Classify();
}

}  // namespace nibble::formats
