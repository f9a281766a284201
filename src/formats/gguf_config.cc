#include "formats/gguf_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

struct Architecture {
  std::string_view gguf;
  std::string_view model_type;
  std::string_view class_name;
  bool interleaved_rope;
};

constexpr std::array<Architecture, 3> kArchitectures = {{
    {"llama", "llama", "LlamaForCausalLM", true},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", false},
}};

const Architecture* FindArchitecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.gguf == name) return &architecture;
  }
  return nullptr;
}

constexpr int64_t kMaxExtent = int64_t{1} << 31;

// The decimal that was meant: 1e-05, though the file holds the float 9.99999974e-06.
double ShortestDecimal(double value) {
  const std::string text = fmt::format("{}", static_cast<float>(value));
  double shortest = value;
  std::from_chars(text.data(), text.data() + text.size(), shortest);
  return shortest;
}

// Keys under the architecture's prefix.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture)
      : file_(file), architecture_(architecture) {}

  std::string Name(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }
  bool Has(std::string_view key) const { return file_.Has(Name(key)); }
  Result<int64_t> Positive(std::string_view key) const {
    return file_.GetInteger(Name(key), 1, kMaxExtent);
  }
  Result<int64_t> Positive(std::string_view key, int64_t fallback) const {
    return Has(key) ? Positive(key) : Result<int64_t>(fallback);
  }
  // Finite and above zero.
  Result<double> Number(std::string_view key) const {
    NIBBLE_ASSIGN(const double value, file_.GetFloat(Name(key)));
    if (!std::isfinite(value) || value <= 0) {
      return Fail(Code::kCorruption, "{}: {} is {}, expected a positive number", file_.name(),
                  Name(key), value);
    }
    return ShortestDecimal(value);
  }

 private:
  const GgufFile& file_;
  std::string_view architecture_;
};

// Keys whose presence would change the arithmetic beyond what the config can say.
Status RefuseUnknownArithmetic(const GgufFile& file, const Keys& keys) {
  if (keys.Has("expert_count")) {
    NIBBLE_ASSIGN(const int64_t experts, file.GetInteger(keys.Name("expert_count"), 0, kMaxExtent));
    if (experts > 0) {
      return Fail(Code::kUnsupported,
                  "{}: {} is {}: mixtures of experts are not imported from GGUF", file.name(),
                  keys.Name("expert_count"), experts);
    }
  }
  for (const std::string_view key :
       {"attention.scale", "logit_scale", "embedding_scale", "residual_scale",
        "attention.clamp_kqv", "attn_logit_softcapping", "final_logit_softcapping"}) {
    if (keys.Has(key)) {
      return Fail(Code::kUnsupported, "{}: metadata key {} is not supported", file.name(),
                  keys.Name(key));
    }
  }
  return {};
}

// Divisors of llama3's inverse frequencies for the published parameters (Llama 3.1 to 3.3: 1, 4,
// 8192) and a given factor.
double Llama3Divisor(double theta, int64_t head_dim, int64_t index, double factor) {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  constexpr double kOriginalContext = 8192.0;
  const double frequency = std::pow(theta, -2.0 * static_cast<double>(index) / head_dim);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < kOriginalContext / kHigh) return 1.0;
  if (wavelength > kOriginalContext / kLow) return factor;
  const double smooth = (kOriginalContext / wavelength - kLow) / (kHigh - kLow);
  return 1.0 / ((1.0 - smooth) / factor + smooth);
}

// rope_freqs.weight back to the parameters it was made from.
Result<json::value> Llama3Scaling(const GgufFile& file, const GgufTensor& tensor, double theta,
                                  int64_t head_dim) {
  const int64_t count = head_dim / 2;
  if (tensor.type != GgmlType::kF32 || tensor.shape != Shape{count}) {
    return Fail(Code::kCorruption, "{}: tensor 'rope_freqs.weight' is {} {}, expected F32 [{}]",
                file.name(), InfoOf(tensor.type).name, tensor.shape.ToString(), count);
  }
  std::vector<float> divisors(static_cast<size_t>(count));
  std::memcpy(divisors.data(), tensor.bytes.data(), tensor.bytes.size());
  if (std::ranges::all_of(divisors, [](float value) { return value == 1.0f; })) return nullptr;

  const double factor = ShortestDecimal(divisors.back());
  for (int64_t i = 0; i < count; ++i) {
    const double expected = Llama3Divisor(theta, head_dim, i, factor);
    if (!(std::abs(divisors[i] - expected) <= 1e-4 * expected)) {
      return Fail(Code::kUnsupported,
                  "{}: tensor 'rope_freqs.weight' [{}] is {}, expected {} by llama3's rope scaling "
                  "(factor {}, low 1, high 4, original context 8192), the only one supported",
                  file.name(), i, divisors[i], expected, factor);
    }
  }
  return json::object{{"rope_type", "llama3"},
                      {"factor", factor},
                      {"low_freq_factor", 1.0},
                      {"high_freq_factor", 4.0},
                      {"original_max_position_embeddings", 8192}};
}

// null when there is none.
Result<json::value> RopeScaling(const GgufFile& file, const Keys& keys, const GgufModel& model,
                                double theta, const FindGgufTensor& find) {
  const GgufTensor* divisors = find("rope_freqs.weight");
  std::string type = "none";
  if (keys.Has("rope.scaling.type")) {
    NIBBLE_ASSIGN(const std::string_view name, file.GetString(keys.Name("rope.scaling.type")));
    type = name;
  } else if (keys.Has("rope.scale_linear")) {
    type = "linear";  // the old key
  }
  if (divisors != nullptr) {
    if (type != "none") {
      return Fail(Code::kUnsupported, "{}: both rope_freqs.weight and {} rope scaling", file.name(),
                  type);
    }
    return Llama3Scaling(file, *divisors, theta, model.head_dim);
  }
  if (type == "none") return nullptr;
  if (type == "linear") {
    const bool old = !keys.Has("rope.scaling.factor") && keys.Has("rope.scale_linear");
    NIBBLE_ASSIGN(const double factor,
                  keys.Number(old ? "rope.scale_linear" : "rope.scaling.factor"));
    if (factor == 1.0) return nullptr;
    return json::object{{"rope_type", "linear"}, {"factor", factor}};
  }
  if (type == "yarn") {
    NIBBLE_ASSIGN(const double factor, keys.Number("rope.scaling.factor"));
    NIBBLE_ASSIGN(const int64_t original, keys.Positive("rope.scaling.original_context_length"));
    json::object scaling{
        {"rope_type", "yarn"}, {"factor", factor}, {"original_max_position_embeddings", original}};
    constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kOptional = {{
        {"rope.scaling.yarn_attn_factor", "attention_factor"},
        {"rope.scaling.yarn_beta_fast", "beta_fast"},
        {"rope.scaling.yarn_beta_slow", "beta_slow"},
    }};
    for (const auto& [key, name] : kOptional) {
      if (!keys.Has(key)) continue;
      NIBBLE_ASSIGN(scaling[name], keys.Number(key));
    }
    return scaling;
  }
  return Fail(Code::kUnsupported, "{}: {} is {}; supported: none, linear, yarn", file.name(),
              keys.Name("rope.scaling.type"), Quoted(type));
}

// llama alone: which linears have biases. Its config has one switch for all four of attention.
Status AddLlamaBiases(const GgufFile& file, const FindGgufTensor& find, json::object* config) {
  const bool query = find("blk.0.attn_q.bias") != nullptr;
  const bool output = find("blk.0.attn_output.bias") != nullptr;
  if (query != output) {
    return Fail(Code::kUnsupported,
                "{}: tensor 'blk.0.attn_{}.bias' is there without 'blk.0.attn_{}.bias': llama has "
                "biases on all attention projections or on none",
                file.name(), query ? "q" : "output", query ? "output" : "q");
  }
  config->insert_or_assign("attention_bias", query);
  config->insert_or_assign("mlp_bias", find("blk.0.ffn_gate.bias") != nullptr);
  return {};
}

}  // namespace

Result<GgufModel> ReadGgufModel(const GgufFile& metadata, const FindGgufTensor& find) {
  NIBBLE_ASSIGN(const std::string_view name, metadata.GetString("general.architecture"));
  const Architecture* architecture = FindArchitecture(name);
  if (architecture == nullptr) {
    return Fail(Code::kUnsupported,
                "{}: architecture {} is not imported from GGUF; supported: llama (with Mistral), "
                "qwen2, qwen3. A Hugging Face folder of the model may work",
                metadata.name(), Quoted(name));
  }
  const Keys keys(metadata, name);
  NIBBLE_TRY(RefuseUnknownArithmetic(metadata, keys));

  GgufModel model;
  model.architecture = name;
  model.interleaved_rope = architecture->interleaved_rope;
  NIBBLE_ASSIGN(model.layers, metadata.GetInteger(keys.Name("block_count"), 1, 4096));
  NIBBLE_ASSIGN(model.hidden, keys.Positive("embedding_length"));
  NIBBLE_ASSIGN(model.intermediate, keys.Positive("feed_forward_length"));
  NIBBLE_ASSIGN(model.heads, keys.Positive("attention.head_count"));
  NIBBLE_ASSIGN(model.kv_heads, keys.Positive("attention.head_count_kv", model.heads));
  NIBBLE_ASSIGN(model.head_dim, keys.Positive("attention.key_length", model.hidden / model.heads));
  NIBBLE_ASSIGN(const int64_t value_dim, keys.Positive("attention.value_length", model.head_dim));
  NIBBLE_ASSIGN(const int64_t rotary_dim, keys.Positive("rope.dimension_count", model.head_dim));
  if (model.heads % model.kv_heads != 0) {
    return Fail(Code::kCorruption, "{}: {} query heads are not a multiple of {} key heads",
                metadata.name(), model.heads, model.kv_heads);
  }
  if (model.head_dim == 0 || model.head_dim % 2 != 0 || value_dim != model.head_dim ||
      rotary_dim != model.head_dim) {
    return Fail(Code::kUnsupported,
                "{}: key length {}, value length {}, rope dimensions {}: expected one even number",
                metadata.name(), model.head_dim, value_dim, rotary_dim);
  }

  const GgufTensor* embedding = find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.rank() != 2) {
    return Fail(Code::kCorruption, "{}: tensor 'token_embd.weight' of two dimensions is missing",
                metadata.name());
  }
  model.vocab = embedding->shape[0];
  model.tied = find("output.weight") == nullptr;
  return model;
}

Result<json::object> MakeGgufConfig(const GgufFile& metadata, const GgufModel& model,
                                    const FindGgufTensor& find) {
  const Keys keys(metadata, model.architecture);
  const Architecture& architecture = *FindArchitecture(model.architecture);
  NIBBLE_ASSIGN(const int64_t context, keys.Positive("context_length"));
  NIBBLE_ASSIGN(const double epsilon, keys.Number("attention.layer_norm_rms_epsilon"));
  double theta = 10000.0;
  if (keys.Has("rope.freq_base")) {
    NIBBLE_ASSIGN(theta, keys.Number("rope.freq_base"));
  }
  NIBBLE_ASSIGN(json::value scaling, RopeScaling(metadata, keys, model, theta, find));
  int64_t window = 0;
  if (keys.Has("attention.sliding_window")) {
    NIBBLE_ASSIGN(window,
                  metadata.GetInteger(keys.Name("attention.sliding_window"), 0, kMaxExtent));
  }
  const bool llama = architecture.gguf == "llama";
  const bool mistral = llama && window > 0;  // the same tensors, with a window

  json::object config;
  config["architectures"] = {mistral ? "MistralForCausalLM" : architecture.class_name};
  config["model_type"] = mistral ? "mistral" : architecture.model_type;
  config["hidden_act"] = "silu";
  config["hidden_size"] = model.hidden;
  config["intermediate_size"] = model.intermediate;
  config["num_hidden_layers"] = model.layers;
  config["num_attention_heads"] = model.heads;
  config["num_key_value_heads"] = model.kv_heads;
  if (architecture.gguf != "qwen2" || model.head_dim * model.heads != model.hidden) {
    config["head_dim"] = model.head_dim;
  }
  config["vocab_size"] = model.vocab;
  config["max_position_embeddings"] = context;
  config["rms_norm_eps"] = epsilon;
  config["rope_theta"] = theta;
  config["rope_scaling"] = std::move(scaling);
  config["tie_word_embeddings"] = model.tied;
  if (mistral) {
    config["sliding_window"] = window;
  } else if (llama) {
    NIBBLE_TRY(AddLlamaBiases(metadata, find, &config));
  } else {
    if (window > 0) {
      return Fail(Code::kUnsupported, "{}: {} is {}: sliding windows are supported for llama alone",
                  metadata.name(), keys.Name("attention.sliding_window"), window);
    }
    config["use_sliding_window"] = false;
    if (architecture.gguf == "qwen3") {
      config["attention_bias"] = find("blk.0.attn_q.bias") != nullptr;
    }
  }
  constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kTokens = {
      {{"bos", "bos_token_id"}, {"eos", "eos_token_id"}, {"padding", "pad_token_id"}}};
  for (const auto& [key, field] : kTokens) {
    NIBBLE_ASSIGN(const int64_t id, GgufTokenId(metadata, key));
    config[field] = id < 0 ? json::value(nullptr) : json::value(id);
  }
  config["torch_dtype"] = "bfloat16";
  return config;
}

Result<int64_t> GgufTokenId(const GgufFile& metadata, std::string_view name) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  const GgufValue* value = metadata.Find(key);
  if (value == nullptr) return -1;
  // Some writers store "none" as the largest U32 or -1.
  if (!value->is_array && value->is_integer() &&
      (value->IntegerAt(0) == -1 || value->IntegerAt(0) == 0xFFFFFFFF)) {
    return -1;
  }
  NIBBLE_ASSIGN(const auto tokens, metadata.GetStrings("tokenizer.ggml.tokens"));
  return metadata.GetInteger(key, 0, static_cast<int64_t>(tokens.size()) - 1);
}

Result<json::object> MakeGgufGenerationConfig(const GgufFile& metadata) {
  json::object config;
  NIBBLE_ASSIGN(const int64_t bos, GgufTokenId(metadata, "bos"));
  NIBBLE_ASSIGN(const int64_t pad, GgufTokenId(metadata, "padding"));
  std::vector<int64_t> stops;
  const auto add = [&stops](int64_t id) {
    if (id >= 0 && std::ranges::find(stops, id) == stops.end()) stops.push_back(id);
  };
  for (const std::string_view name : {"eos", "eot", "eom"}) {
    NIBBLE_ASSIGN(const int64_t id, GgufTokenId(metadata, name));
    add(id);
  }
  NIBBLE_ASSIGN(const auto tokens, metadata.GetStrings("tokenizer.ggml.tokens"));
  if (metadata.Has("tokenizer.ggml.token_type")) {
    NIBBLE_ASSIGN(const GgufValue* types,
                  metadata.GetNumbers("tokenizer.ggml.token_type", tokens.size()));
    constexpr int64_t kControl = 3;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (types->FloatAt(i) != kControl) continue;
      for (const std::string_view name :
           {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"}) {
        if (tokens[i] == name) add(static_cast<int64_t>(i));
      }
    }
  }
  if (bos >= 0) config["bos_token_id"] = bos;
  if (stops.size() == 1) {
    config["eos_token_id"] = stops[0];
  } else if (!stops.empty()) {
    config["eos_token_id"] = json::array(stops.begin(), stops.end());
  }
  if (pad >= 0) config["pad_token_id"] = pad;

  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kSampling = {{
      {"general.sampling.temp", "temperature"},
      {"general.sampling.top_k", "top_k"},
      {"general.sampling.top_p", "top_p"},
      {"general.sampling.min_p", "min_p"},
      {"general.sampling.penalty_repeat", "repetition_penalty"},
  }};
  for (const auto& [key, field] : kSampling) {
    if (!metadata.Has(key)) continue;
    NIBBLE_ASSIGN(const double value, metadata.GetFloat(key));
    const double rounded = ShortestDecimal(value);
    config[field] =
        field == "top_k" ? json::value(static_cast<int64_t>(rounded)) : json::value(rounded);
    config["do_sample"] = true;
  }
  return config;
}

}  // namespace nibble::formats
