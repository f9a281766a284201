#include "formats/gguf_tensors.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <utility>

#include "device/buffer.h"
#include "formats/json_file.h"
#include "numerics/bf16.h"

namespace nibble::formats {
namespace {

// A dimension by its meaning.
enum class Dim { kNone, kVocab, kHidden, kFfn, kQuery, kKeyValue, kHead };
enum class Role { kEmbedding, kNorm, kLinear, kQueryLinear, kKeyLinear };

struct Rule {
  std::string_view gguf;          // "attn_q", or the stem of a tensor outside the blocks
  std::string_view hugging_face;  // "self_attn.q_proj"
  Role role;
  Dim rows;
  Dim columns;                 // kNone: a vector of `rows`
  std::string_view only = "";  // an architecture, "" for all
};

constexpr std::array<Rule, 3> kOuterRules = {{
    {"token_embd", "model.embed_tokens", Role::kEmbedding, Dim::kVocab, Dim::kHidden},
    {"output_norm", "model.norm", Role::kNorm, Dim::kHidden, Dim::kNone},
    {"output", "lm_head", Role::kLinear, Dim::kVocab, Dim::kHidden},
}};

constexpr std::array<Rule, 11> kBlockRules = {{
    {"attn_norm", "input_layernorm", Role::kNorm, Dim::kHidden, Dim::kNone},
    {"ffn_norm", "post_attention_layernorm", Role::kNorm, Dim::kHidden, Dim::kNone},
    {"attn_q", "self_attn.q_proj", Role::kQueryLinear, Dim::kQuery, Dim::kHidden},
    {"attn_k", "self_attn.k_proj", Role::kKeyLinear, Dim::kKeyValue, Dim::kHidden},
    {"attn_v", "self_attn.v_proj", Role::kLinear, Dim::kKeyValue, Dim::kHidden},
    {"attn_output", "self_attn.o_proj", Role::kLinear, Dim::kHidden, Dim::kQuery},
    {"attn_q_norm", "self_attn.q_norm", Role::kNorm, Dim::kHead, Dim::kNone, "qwen3"},
    {"attn_k_norm", "self_attn.k_norm", Role::kNorm, Dim::kHead, Dim::kNone, "qwen3"},
    {"ffn_gate", "mlp.gate_proj", Role::kLinear, Dim::kFfn, Dim::kHidden},
    {"ffn_up", "mlp.up_proj", Role::kLinear, Dim::kFfn, Dim::kHidden},
    {"ffn_down", "mlp.down_proj", Role::kLinear, Dim::kHidden, Dim::kFfn},
}};

int64_t Extent(const GgufModel& model, Dim dim) {
  switch (dim) {
    case Dim::kVocab:
      return model.vocab;
    case Dim::kHidden:
      return model.hidden;
    case Dim::kFfn:
      return model.intermediate;
    case Dim::kQuery:
      return model.heads * model.head_dim;
    case Dim::kKeyValue:
      return model.kv_heads * model.head_dim;
    case Dim::kHead:
      return model.head_dim;
    case Dim::kNone:
      break;
  }
  return 1;
}

bool IsFourBit(GgmlType type) { return type == GgmlType::kMxfp4 || type == GgmlType::kNvfp4; }

// The dtype under which a type is read; BF16 for block types.
DType ReadAs(GgmlType type) {
  if (type == GgmlType::kF32) return DType::kF32;
  if (type == GgmlType::kF16) return DType::kF16;
  return DType::kBF16;
}

bool IsPlain(GgmlType type) {
  return type == GgmlType::kF32 || type == GgmlType::kF16 || type == GgmlType::kBf16;
}

template <size_t N>
const Rule* FindRule(const std::array<Rule, N>& rules, std::string_view stem,
                     const std::string& architecture) {
  for (const Rule& rule : rules) {
    if (rule.gguf == stem && (rule.only.empty() || rule.only == architecture)) return &rule;
  }
  return nullptr;
}

struct Place {
  const Rule* rule = nullptr;
  std::string prefix;       // "model.layers.3.self_attn.q_proj"
  std::string_view suffix;  // "weight", "bias", "scale", "input_scale"
};

// Where "blk.3.attn_q.weight" belongs; rule is null when nowhere.
Place Locate(std::string_view name, const GgufModel& model) {
  Place place;
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return place;
  place.suffix = name.substr(dot + 1);
  std::string_view stem = name.substr(0, dot);
  constexpr std::string_view kBlock = "blk.";
  if (!stem.starts_with(kBlock)) {
    place.rule = FindRule(kOuterRules, stem, model.architecture);
    if (place.rule != nullptr) place.prefix = place.rule->hugging_face;
    return place;
  }
  stem.remove_prefix(kBlock.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(stem.data(), stem.data() + stem.size(), layer);
  const auto digits = static_cast<size_t>(end - stem.data());
  if (error != std::errc() || layer < 0 || layer >= model.layers || digits >= stem.size() ||
      stem[digits] != '.' || stem.substr(0, digits) != std::to_string(layer)) {
    return place;
  }
  place.rule = FindRule(kBlockRules, stem.substr(digits + 1), model.architecture);
  if (place.rule != nullptr) {
    place.prefix = fmt::format("model.layers.{}.{}", layer, place.rule->hugging_face);
  }
  return place;
}

class Mapper {
 public:
  Mapper(const GgufModel& model, const FindGgufTensor& find, const std::string& file)
      : model_(model), find_(find), file_(file) {}

  Status Add(const GgufTensor& tensor) {
    if (tensor.name == "rope_freqs.weight") return {};  // became rope_scaling
    const Place place = Locate(tensor.name, model_);
    if (place.rule == nullptr) return NoPlace(tensor);
    if (place.suffix == "weight") return AddWeight(tensor, place);
    if (place.suffix == "bias") return AddBias(tensor, place);
    if (place.suffix == "scale" || place.suffix == "input_scale") return AddScale(tensor, place);
    return NoPlace(tensor);
  }

  std::vector<GgufEntry> Take() {
    std::ranges::sort(entries_, {}, [](const GgufEntry& e) { return e.entry.name; });
    return std::move(entries_);
  }

 private:
  Status NoPlace(const GgufTensor& tensor) const {
    return Fail(Code::kUnsupported, "{}: tensor {} has no place in architecture {}", file_,
                Quoted(tensor.name), model_.architecture);
  }

  Status CheckShape(const GgufTensor& tensor, const Shape& expected) const {
    if (tensor.shape == expected) return {};
    return Fail(Code::kCorruption, "{}: tensor {} has shape {}, expected {}", file_,
                Quoted(tensor.name), tensor.shape.ToString(), expected.ToString());
  }

  // Heads within which the rows of this tensor are interleaved; 0 for none.
  int64_t InterleavedHeads(const Rule& rule) const {
    if (!model_.interleaved_rope) return 0;
    if (rule.role == Role::kQueryLinear) return model_.heads;
    return rule.role == Role::kKeyLinear ? model_.kv_heads : 0;
  }

  // NVFP4's companion "X.scale"; null when the file omits it.
  const GgufTensor* ScaleOf(const GgufTensor& weight) const {
    const std::string_view stem = std::string_view(weight.name).substr(0, weight.name.rfind('.'));
    return find_(fmt::format("{}.scale", stem));
  }

  void Push(std::string name, DType dtype, Shape shape, int64_t stored_bytes,
            std::string_view stored_as, GgufSource source) {
    entries_.push_back({TensorEntry{.name = std::move(name),
                                    .dtype = dtype,
                                    .shape = shape,
                                    .stored_bytes = stored_bytes,
                                    .stored_as = std::string(stored_as)},
                        source});
  }

  Status AddWeight(const GgufTensor& tensor, const Place& place) {
    const Rule& rule = *place.rule;
    Shape expected{Extent(model_, rule.rows)};
    if (rule.columns != Dim::kNone) expected.Append(Extent(model_, rule.columns));
    NIBBLE_TRY(CheckShape(tensor, expected));
    const int64_t heads = InterleavedHeads(rule);
    if (IsFourBit(tensor.type) && rule.role != Role::kEmbedding && expected.rank() == 2) {
      AddFourBit(tensor, place.prefix, heads);
      return {};
    }
    const bool plain = IsPlain(tensor.type);
    Push(fmt::format("{}.weight", place.prefix), ReadAs(tensor.type), tensor.shape,
         static_cast<int64_t>(tensor.bytes.size()), InfoOf(tensor.type).name,
         {.kind = plain ? GgufSource::Kind::kStored : GgufSource::Kind::kDequantized,
          .tensor = &tensor,
          .scale = tensor.type == GgmlType::kNvfp4 ? ScaleOf(tensor) : nullptr,
          .interleaved_heads = heads});
    return {};
  }

  void AddFourBit(const GgufTensor& tensor, const std::string& prefix, int64_t heads) {
    const bool nvfp4 = tensor.type == GgmlType::kNvfp4;
    const std::string_view stored_as = InfoOf(tensor.type).name;
    const int64_t rows = tensor.shape[0];
    const int64_t columns = tensor.shape[1];
    const Shape codes{rows, columns / 2};
    const Shape scales{rows, columns / (nvfp4 ? 16 : 32)};
    Push(fmt::format("{}.{}", prefix, nvfp4 ? "weight" : "weight_packed"), DType::kU8, codes,
         codes.elements(), stored_as,
         {.kind = GgufSource::Kind::kCodes, .tensor = &tensor, .interleaved_heads = heads});
    Push(fmt::format("{}.weight_scale", prefix), nvfp4 ? DType::kF8E4M3 : DType::kU8, scales,
         scales.elements(), stored_as,
         {.kind = GgufSource::Kind::kScales, .tensor = &tensor, .interleaved_heads = heads});
    if (nvfp4 && ScaleOf(tensor) == nullptr) {
      Push(fmt::format("{}.weight_scale_2", prefix), DType::kF32, Shape{}, 0, stored_as,
           {.kind = GgufSource::Kind::kOne});
    }
  }

  Status AddBias(const GgufTensor& tensor, const Place& place) {
    const Rule& rule = *place.rule;
    if (rule.role == Role::kNorm || rule.role == Role::kEmbedding) return NoPlace(tensor);
    NIBBLE_TRY(CheckShape(tensor, Shape{Extent(model_, rule.rows)}));
    if (!IsPlain(tensor.type)) {
      return Fail(Code::kUnsupported, "{}: tensor {} is {}, expected F32, F16 or BF16", file_,
                  Quoted(tensor.name), InfoOf(tensor.type).name);
    }
    Push(fmt::format("{}.bias", place.prefix), ReadAs(tensor.type), tensor.shape,
         static_cast<int64_t>(tensor.bytes.size()), InfoOf(tensor.type).name,
         {.tensor = &tensor, .interleaved_heads = InterleavedHeads(rule)});
    return {};
  }

  // The tensor scale or the activation scale of an NVFP4 weight.
  Status AddScale(const GgufTensor& tensor, const Place& place) {
    const std::string_view stem = std::string_view(tensor.name).substr(0, tensor.name.rfind('.'));
    const GgufTensor* weight = find_(fmt::format("{}.weight", stem));
    if (weight == nullptr || weight->type != GgmlType::kNvfp4) {
      return Fail(Code::kUnsupported, "{}: tensor {} scales a weight that is {}, expected NVFP4",
                  file_, Quoted(tensor.name),
                  weight == nullptr ? "missing" : InfoOf(weight->type).name);
    }
    if (tensor.type != GgmlType::kF32 || tensor.shape.elements() != 1) {
      return Fail(Code::kCorruption, "{}: tensor {} is {} {}, expected F32 [1]", file_,
                  Quoted(tensor.name), InfoOf(tensor.type).name, tensor.shape.ToString());
    }
    const bool embedding = place.rule->role == Role::kEmbedding;
    if (embedding && place.suffix == "scale") return {};  // folded into the dequantised embedding
    if (embedding) return NoPlace(tensor);
    Push(fmt::format("{}.{}", place.prefix,
                     place.suffix == "scale" ? "weight_scale_2" : "input_scale"),
         DType::kF32, Shape{}, sizeof(float), InfoOf(GgmlType::kF32).name, {.tensor = &tensor});
    return {};
  }

  const GgufModel& model_;
  const FindGgufTensor& find_;
  const std::string& file_;
  std::vector<GgufEntry> entries_;
};

// The file's row that becomes Hugging Face row `row` of `rows`: within a head of Dh rows, row
// p Dh/2 + i is stored as row 2i + p.
int64_t StoredRow(int64_t row, int64_t rows, int64_t interleaved_heads) {
  if (interleaved_heads == 0) return row;
  const int64_t head_dim = rows / interleaved_heads;
  const int64_t head = row / head_dim;
  const int64_t within = row % head_dim;
  return head * head_dim + 2 * (within % (head_dim / 2)) + within / (head_dim / 2);
}

// Writes one row of the result.
void ReadRow(const GgufSource& source, const std::byte* stored, int64_t columns, std::byte* out) {
  const GgmlType type = source.tensor->type;
  switch (source.kind) {
    case GgufSource::Kind::kStored:
      std::memcpy(out, stored, static_cast<size_t>(columns * InfoOf(type).block_bytes));
      return;
    case GgufSource::Kind::kDequantized:
      DequantizeGgmlToBf16(type, stored, columns, reinterpret_cast<uint16_t*>(out));
      return;
    case GgufSource::Kind::kCodes:
      (type == GgmlType::kNvfp4 ? RepackNvfp4 : RepackMxfp4)(stored, columns, out, nullptr);
      return;
    case GgufSource::Kind::kScales:
      (type == GgmlType::kNvfp4 ? RepackNvfp4 : RepackMxfp4)(stored, columns, nullptr, out);
      return;
    case GgufSource::Kind::kOne:
      return;
  }
}

// An NVFP4 embedding times its tensor scale.
void ReadScaledRow(const std::byte* stored, int64_t columns, float scale, std::vector<float>* row,
                   uint16_t* out) {
  DequantizeGgml(GgmlType::kNvfp4, stored, columns, row->data());
  for (int64_t i = 0; i < columns; ++i) out[i] = Bf16FromFloat((*row)[i] * scale);
}

}  // namespace

Result<std::vector<GgufEntry>> MapGgufTensors(const std::vector<const GgufTensor*>& tensors,
                                              const GgufModel& model, const FindGgufTensor& find,
                                              const std::string& file_name) {
  Mapper mapper(model, find, file_name);
  for (const GgufTensor* tensor : tensors) NIBBLE_TRY(mapper.Add(*tensor));
  return mapper.Take();
}

Result<TensorData> ReadGgufTensor(const TensorEntry& entry, const GgufSource& source,
                                  const std::shared_ptr<const void>& owner) {
  static constexpr float kOne = 1.0f;
  TensorData data;
  data.view = {.dtype = entry.dtype, .shape = entry.shape};
  if (source.kind == GgufSource::Kind::kOne) {
    data.view.data = reinterpret_cast<const std::byte*>(&kOne);
    return data;
  }
  const GgufTensor& tensor = *source.tensor;
  if (source.kind == GgufSource::Kind::kStored && source.interleaved_heads == 0) {
    data.view.data = tensor.bytes.data();
    data.owner = owner;
    return data;
  }

  // A bias whose elements move is a matrix of one column.
  const bool by_element = tensor.shape.rank() == 1 && source.interleaved_heads > 0;
  const int64_t rows = by_element ? tensor.shape[0] : tensor.rows();
  const int64_t columns = by_element ? 1 : tensor.columns();
  if (rows == 0 || columns == 0) return data;
  const int64_t stored_row_bytes = static_cast<int64_t>(tensor.bytes.size()) / rows;
  const int64_t row_bytes = data.view.bytes() / rows;
  NIBBLE_ASSIGN(auto buffer, Buffer::Allocate(static_cast<size_t>(data.view.bytes())));
  const auto result = std::make_shared<Buffer>(std::move(buffer));

  float scale = 1.0f;
  if (source.scale != nullptr) std::memcpy(&scale, source.scale->bytes.data(), sizeof(scale));
  std::vector<float> scaled(source.scale != nullptr ? static_cast<size_t>(columns) : 0);
  for (int64_t row = 0; row < rows; ++row) {
    const std::byte* stored =
        tensor.bytes.data() + StoredRow(row, rows, source.interleaved_heads) * stored_row_bytes;
    std::byte* out = result->data() + row * row_bytes;
    if (source.scale != nullptr) {
      ReadScaledRow(stored, columns, scale, &scaled, reinterpret_cast<uint16_t*>(out));
    } else {
      ReadRow(source, stored, columns, out);
    }
  }
  data.view.data = result->data();
  data.owner = result;
  return data;
}

}  // namespace nibble::formats
