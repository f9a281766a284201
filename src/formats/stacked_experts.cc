#include "formats/stacked_experts.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "formats/float_tensor.h"
#include "formats/json_file.h"
#include "formats/made_up_linear.h"
#include "formats/quantization_config.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::formats {
namespace {

constexpr int64_t kBlockBytes = kMxfp4Block / 2;  // of a stack of blocks

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

bool IsE8M0(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8M0; }

// Names of the stacks that may hold a projection: the pair's, then its own.
std::array<std::string_view, 2> StackNames(Projection projection) {
  switch (projection) {
    case Projection::kGate:
      return {"gate_up_proj", "gate_proj"};
    case Projection::kUp:
      return {"gate_up_proj", "up_proj"};
    case Projection::kDown:
      break;
  }
  return {"down_proj", ""};
}

tl::unexpected<Error> FailTensor(const Checkpoint& checkpoint, const TensorEntry& entry,
                                 std::string_view expected, Code code = Code::kCorruption) {
  return Fail(code, "{}: tensor {}: {} {}, expected {}", checkpoint.path(), Quoted(entry.name),
              DTypeName(entry.dtype), entry.shape.ToString(), expected);
}

class StackFinder {
 public:
  StackFinder(const Checkpoint& checkpoint, std::string base)
      : checkpoint_(checkpoint), base_(std::move(base)) {}

  std::optional<ExpertStack> Find() const {
    ExpertStack stack;
    if ((stack.weight = Tensor("_blocks")) != nullptr) {
      stack.scale = Tensor("_scales");
      stack.is_blocks = true;
      return stack;
    }
    stack.weight = Tensor("");
    const char joint = stack.weight != nullptr ? '_' : '.';
    if (stack.weight == nullptr) stack.weight = Tensor(".weight");
    if (stack.weight == nullptr) return std::nullopt;
    for (const char* suffix :
         {"weight_scale", "weight_scale_inv", "scale", "scale_inv", "scales_inv"}) {
      if (stack.scale == nullptr) stack.scale = Tensor(fmt::format("{}{}", joint, suffix));
    }
    stack.global_scale = Tensor(fmt::format("{}weight_scale_2", joint));
    stack.input_scale = Tensor(fmt::format("{}input_scale", joint));
    stack.input_multiplier = Tensor(fmt::format("{}pre_quant_scale", joint));
    return stack;
  }

 private:
  const TensorEntry* Tensor(std::string_view suffix) const {
    return checkpoint_.Find(base_ + std::string(suffix));
  }

  const Checkpoint& checkpoint_;
  std::string base_;
};

// Decides format, orientation and scale blocks of one stack.
class StackClassifier {
 public:
  StackClassifier(const Checkpoint& checkpoint, std::string_view experts, Projection projection,
                  const ExpertStack& stack, int64_t n, int64_t k)
      : checkpoint_(checkpoint), experts_(experts), projection_(projection) {
    linear_.stack = stack;
    linear_.n = n;
    linear_.k = k;
    rows_ = stack.Rows(n);
  }

  Result<StackedLinear> Classify(const ExpertLayout& layout) {
    NIBBLE_TRY(SetFormat());
    NIBBLE_TRY(SetOrientation(linear_.stack.is_blocks ? false : layout.transposed));
    linear_.rows = ProjectionRows(projection_, linear_.stack.is_pair, linear_.n, layout);
    if (linear_.format == WeightFormat::kFp8) NIBBLE_TRY(SetFp8Blocks());
    return linear_;
  }

 private:
  const TensorEntry& weight() const { return *linear_.stack.weight; }
  const TensorEntry& scale() const { return *linear_.stack.scale; }
  int64_t experts() const { return weight().shape[0]; }

  tl::unexpected<Error> FailScaleMissing() const {
    const bool blocks = linear_.stack.is_blocks;
    return Fail(Code::kCorruption, "{}: tensor {}: {} needs {}, which is missing",
                checkpoint_.path(), Quoted(weight().name), DTypeName(weight().dtype),
                blocks ? "its _scales" : "its _weight_scale");
  }

  Status SetFormat() {
    if (linear_.stack.input_multiplier != nullptr) {
      return Fail(Code::kUnsupported,
                  "{}: tensor {}: a pre_quant_scale of stacked experts is not supported; export "
                  "with plain NVFP4",
                  checkpoint_.path(), Quoted(linear_.stack.input_multiplier->name));
    }
    const int rank = linear_.stack.is_blocks ? 4 : 3;
    if (weight().shape.rank() != rank || weight().shape.elements() == 0) {
      return FailTensor(checkpoint_, weight(),
                        fmt::format("{} dimensions, the experts first", rank));
    }
    switch (weight().dtype) {
      case DType::kBF16:
        linear_.format = WeightFormat::kBf16;
        return {};
      case DType::kF16:
        linear_.format = WeightFormat::kF16;
        return {};
      case DType::kF32:
        linear_.format = WeightFormat::kF32;
        return {};
      case DType::kF8E4M3:
        if (linear_.stack.scale == nullptr) return FailScaleMissing();
        linear_.format = WeightFormat::kFp8;
        return {};
      case DType::kU8:
        return SetByteFormat();
      default:
        return FailTensor(checkpoint_, weight(),
                          "U8 (NVFP4, MXFP4), F8_E4M3, BF16, F16 or F32 as the dtype of stacked "
                          "experts",
                          Code::kUnsupported);
    }
  }

  Status SetByteFormat() {
    if (linear_.stack.scale == nullptr) return FailScaleMissing();
    if (IsE8M0(scale().dtype)) {
      linear_.format = WeightFormat::kMxfp4;
      linear_.scale_block_k = kMxfp4Block;
    } else if (scale().dtype == DType::kF8E4M3) {
      linear_.format = WeightFormat::kNvfp4;
      linear_.scale_block_k = kNvfp4Block;
      if (linear_.stack.global_scale == nullptr) {
        return Fail(Code::kCorruption,
                    "{}: tensor {}: U8 needs its _weight_scale_2, which is missing",
                    checkpoint_.path(), Quoted(weight().name));
      }
    } else {
      return FailTensor(checkpoint_, scale(), "F8_E4M3 (NVFP4) or U8 or F8_E8M0 (MXFP4)",
                        Code::kUnsupported);
    }
    if (linear_.k % linear_.scale_block_k != 0) {
      return Fail(Code::kCorruption,
                  "{}: tensor {}: K = {} of the architecture, expected a multiple of {} for {}",
                  checkpoint_.path(), Quoted(weight().name), linear_.k, linear_.scale_block_k,
                  WeightFormatName(linear_.format));
    }
    return {};
  }

  bool HasBlocks() const {
    return linear_.format == WeightFormat::kNvfp4 || linear_.format == WeightFormat::kMxfp4;
  }

  // The weight's shape if it is stored so.
  Shape WeightShape(bool transposed) const {
    const int64_t k = HasBlocks() ? linear_.k / 2 : linear_.k;
    if (linear_.stack.is_blocks) return {experts(), rows_, k / kBlockBytes, kBlockBytes};
    return transposed ? Shape{experts(), k, rows_} : Shape{experts(), rows_, k};
  }

  Shape BlockScaleShape(bool transposed) const {
    const int64_t columns = linear_.k / linear_.scale_block_k;
    return transposed ? Shape{experts(), columns, rows_} : Shape{experts(), rows_, columns};
  }

  bool WeightFits(bool transposed) const { return weight().shape == WeightShape(transposed); }

  bool Fits(bool transposed) const {
    return WeightFits(transposed) && (!HasBlocks() || scale().shape == BlockScaleShape(transposed));
  }

  // transposed: as the model says, if it says so.
  Status SetOrientation(std::optional<bool> transposed) {
    const bool rows_fit = transposed != true && Fits(false);
    const bool columns_fit = transposed != false && Fits(true);
    linear_.transposed = columns_fit;
    if (rows_fit != columns_fit) return {};
    if (rows_fit) return SetOrientationOfPartner();
    return FailShapes(transposed);
  }

  // Both orientations fit: the layer's other stack lies as this one does.
  Status SetOrientationOfPartner() {
    const Projection other =
        projection_ == Projection::kDown ? Projection::kGate : Projection::kDown;
    const auto partner = FindExpertStack(checkpoint_, experts_, other);
    if (partner) {
      StackClassifier classifier(checkpoint_, experts_, other, *partner, linear_.k, linear_.n);
      if (classifier.SetFormat() && classifier.Fits(false) != classifier.Fits(true)) {
        linear_.transposed = classifier.Fits(true);
        return {};
      }
    }
    return Fail(
        Code::kInvalidArgument,
        "{}: tensor {}: {} is both (experts, rows, columns) and (experts, columns, rows) of "
        "linears with N = {}, K = {}; the model must say which",
        checkpoint_.path(), Quoted(weight().name), weight().shape.ToString(), linear_.n, linear_.k);
  }

  Status FailShapes(std::optional<bool> wanted) const {
    const bool transposed = wanted.value_or(WeightFits(true) && !WeightFits(false));
    if (WeightFits(transposed)) {
      return FailTensor(checkpoint_, scale(),
                        fmt::format("{} beside {} {}", BlockScaleShape(transposed).ToString(),
                                    Quoted(weight().name), weight().shape.ToString()));
    }
    std::string expected = WeightShape(transposed).ToString();
    if (!wanted) expected += " or " + WeightShape(true).ToString();
    return FailTensor(checkpoint_, weight(),
                      fmt::format("{}: {} linears with N = {}, K = {}", expected,
                                  WeightFormatName(linear_.format), linear_.n, linear_.k));
  }

  // One scale per tensor, expert, row or block, from the shape; (E, ...) but for a scalar.
  Status SetFp8Blocks() {
    if (!IsFloat(scale().dtype) && !IsE8M0(scale().dtype)) {
      return FailTensor(checkpoint_, scale(), "F32, BF16, F16, or E8M0 as U8 or F8_E8M0");
    }
    const Shape& shape = scale().shape;
    const int64_t e = experts();
    const bool whole = shape.elements() == 1 || shape == Shape{e} || shape == Shape{e, 1} ||
                       shape == Shape{e, 1, 1};
    const Shape row_scales = linear_.transposed ? Shape{e, 1, rows_} : Shape{e, rows_, 1};
    if (whole) return SetBlocks(rows_, linear_.k);
    if (shape == Shape{e, rows_} || shape == row_scales) return SetBlocks(1, linear_.k);
    const auto [config_n, config_k] = ConfiguredFp8Block(checkpoint_.config());
    const std::array<std::pair<int64_t, int64_t>, 3> candidates = {
        {{config_n, config_k}, {128, 128}, {1, 32}}};
    for (const auto& [block_n, block_k] : candidates) {
      if (block_n > 0 && block_k > 0 && shape == Fp8Grid(block_n, block_k)) {
        return SetBlocks(block_n, block_k);
      }
    }
    return FailTensor(checkpoint_, scale(),
                      fmt::format("a scalar, [{}], {}, or {} for blocks of 128×128 or of "
                                  "config.json's weight_block_size, beside {} {}",
                                  e, row_scales.ToString(), Fp8Grid(128, 128).ToString(),
                                  Quoted(weight().name), weight().shape.ToString()));
  }

  Shape Fp8Grid(int64_t block_n, int64_t block_k) const {
    const int64_t down = CeilDiv(rows_, block_n);
    const int64_t across = CeilDiv(linear_.k, block_k);
    return linear_.transposed ? Shape{experts(), across, down} : Shape{experts(), down, across};
  }

  Status SetBlocks(int64_t block_n, int64_t block_k) {
    linear_.scale_block_n = std::min(block_n, rows_);
    linear_.scale_block_k = std::min(block_k, linear_.k);
    return {};
  }

  const Checkpoint& checkpoint_;
  std::string_view experts_;
  Projection projection_;
  StackedLinear linear_;
  int64_t rows_ = 0;  // of the stacked matrix
};

// One expert's (rows, columns), whichever way it lies in the stack.
StoredMatrix ExpertMatrix(const TensorData& expert, int64_t rows, int64_t columns,
                          bool transposed) {
  StoredMatrix matrix;
  matrix.element_bytes = DTypeBits(expert.view.dtype) / 8;
  matrix.data = expert.view.data;
  matrix.columns = columns;
  matrix.row_stride = transposed ? 1 : columns;
  matrix.column_stride = transposed ? rows : 1;
  return matrix;
}

// Rows of a scale block such that the selected rows of the matrix fill whole blocks: as many as it
// takes for no block to straddle two stored ones.
int64_t SelectedBlockRows(const RowSelection& rows, int64_t block_n, int64_t stacked_rows) {
  if (block_n >= stacked_rows) return rows.count;
  if (rows.step > 1) {
    return block_n % rows.step == 0 && rows.first < rows.step ? block_n / rows.step : 1;
  }
  return std::gcd(block_n, rows.first);
}

}  // namespace

std::optional<ExpertStack> FindExpertStack(const Checkpoint& checkpoint, std::string_view experts,
                                           Projection projection) {
  for (const std::string_view name : StackNames(projection)) {
    if (name.empty()) continue;
    auto stack = StackFinder(checkpoint, fmt::format("{}.{}", experts, name)).Find();
    if (!stack) continue;
    stack->is_pair = name == "gate_up_proj";
    return stack;
  }
  return std::nullopt;
}

const TensorEntry* FindExpertBias(const Checkpoint& checkpoint, std::string_view experts,
                                  Projection projection, bool* is_pair) {
  for (const std::string_view name : StackNames(projection)) {
    if (name.empty()) continue;
    *is_pair = name == "gate_up_proj";
    for (const char* suffix : {"_bias", ".bias"}) {
      const auto* bias = checkpoint.Find(fmt::format("{}.{}{}", experts, name, suffix));
      if (bias != nullptr) return bias;
    }
  }
  return nullptr;
}

RowSelection ProjectionRows(Projection projection, bool is_pair, int64_t n,
                            const ExpertLayout& layout) {
  RowSelection rows;
  rows.count = n;
  if (!is_pair) return rows;
  const int64_t index = projection == Projection::kUp ? 1 : 0;
  rows.step = layout.interleaved ? 2 : 1;
  rows.first = layout.interleaved ? index : index * n;
  return rows;
}

Result<StackedLinear> ClassifyStack(const Checkpoint& checkpoint, std::string_view experts,
                                    int64_t expert, Projection projection, int64_t n, int64_t k,
                                    const ExpertLayout& layout) {
  const auto stack = FindExpertStack(checkpoint, experts, projection);
  const auto names = StackNames(projection);
  if (!stack) {
    return Fail(Code::kNotFound, "{}: no tensor {}.{}.{}.weight, {}.{} or {}.{}_blocks",
                checkpoint.path(), experts, expert, names[1].empty() ? names[0] : names[1], experts,
                names[0], experts, names[0]);
  }
  StackClassifier classifier(checkpoint, experts, projection, *stack, n, k);
  NIBBLE_ASSIGN(const StackedLinear linear, classifier.Classify(layout));
  if (expert >= 0 && expert < stack->weight->shape[0]) return linear;
  return FailTensor(checkpoint, *stack->weight, fmt::format("an expert {}", expert));
}

Result<LinearData> ReadStack(const Checkpoint& checkpoint, const StackedLinear& linear,
                             int64_t expert) {
  const int64_t stacked_rows = linear.stack.Rows(linear.n);
  NIBBLE_ASSIGN(const TensorData weights, checkpoint.ReadSlice(*linear.stack.weight, expert, 1));
  const bool pairs = linear.format == WeightFormat::kNvfp4 || linear.format == WeightFormat::kMxfp4;
  const GatheredBytes codes = GatherRows(
      ExpertMatrix(weights, stacked_rows, pairs ? linear.k / 2 : linear.k, linear.transposed),
      linear.rows);
  LinearData data;
  data.view.format = linear.format;
  data.view.n = linear.n;
  data.view.k = linear.k;
  data.view.data = codes.data;
  data.view.scale_block_k = linear.scale_block_k;
  if (linear.stack.scale == nullptr) {
    data.owner = codes.owner != nullptr ? codes.owner : weights.owner;
    return data;
  }
  const TensorEntry& scale = *linear.stack.scale;
  const bool for_all_experts = scale.shape.elements() == 1;
  NIBBLE_ASSIGN(const TensorData scales,
                for_all_experts ? checkpoint.Read(scale) : checkpoint.ReadSlice(scale, expert, 1));
  const int64_t block_n = linear.scale_block_n;
  const StoredMatrix grid =
      ExpertMatrix(scales, CeilDiv(stacked_rows, block_n), CeilDiv(linear.k, linear.scale_block_k),
                   linear.transposed);
  const int64_t block_rows = SelectedBlockRows(linear.rows, block_n, stacked_rows);
  const GatheredBytes picked = GatherRows(grid, {linear.rows.first, linear.rows.step * block_rows,
                                                 CeilDiv(linear.n, block_rows), block_n});
  data.view.scales = picked.data;
  data.view.scale_dtype = scales.view.dtype;
  data.view.scale_block_n = block_rows;
  data.owner = JoinOwners({codes.owner != nullptr ? codes.owner : weights.owner,
                           picked.owner != nullptr ? picked.owner : scales.owner});
  return data;
}

std::optional<LinearData> MakeUpStack(const Checkpoint& checkpoint, const StackedLinear& linear,
                                      int64_t expert) {
  const ExpertStack& stack = linear.stack;
  if (linear.transposed || linear.scale_block_n != 1) return std::nullopt;
  QuantView view = {
      .format = linear.format, .n = linear.n, .k = linear.k, .scale_block_k = linear.scale_block_k};
  const MadeUpBytes* scales = nullptr;
  if (stack.scale != nullptr) {
    view.scale_dtype = stack.scale->dtype;
    scales = checkpoint.MadeUp(*stack.scale);
    if (stack.scale->shape.elements() == 1) return std::nullopt;
  }
  RowSelection rows = linear.rows;
  rows.first += expert * stack.Rows(linear.n);
  return MakeUpLinear(view, checkpoint.MadeUp(*stack.weight), scales, rows, stack.scale != nullptr);
}

Result<int64_t> ScalarIndex(const Checkpoint& checkpoint, const TensorEntry& entry,
                            const StackedLinear& linear, Projection projection, int64_t expert) {
  const int64_t experts = linear.stack.weight->shape[0];
  const Shape& shape = entry.shape;
  if (IsFloat(entry.dtype)) {
    if (shape.elements() == 1) return 0;
    if (shape == Shape{experts} || shape == Shape{experts, 1} || shape == Shape{experts, 1, 1}) {
      return expert;
    }
    if (linear.stack.is_pair && shape == Shape{experts, 2}) {
      return 2 * expert + (projection == Projection::kUp ? 1 : 0);
    }
  }
  return FailTensor(checkpoint, entry, fmt::format("a F32 scalar or [{}]", experts));
}

}  // namespace nibble::formats
