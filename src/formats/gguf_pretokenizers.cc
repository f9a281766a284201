#include "formats/gguf_pretokenizers.h"

#include <array>
#include <initializer_list>

namespace nibble::formats {
namespace {

namespace json = boost::json;

enum class Family {
  kGpt2,        // ByteLevel with its own pattern
  kDigitsGpt2,  // single digits, then as GPT-2
  kLlama3,
  kQwen2,
  kQwen35,
  kTekken,
  kO200k,
  kDeepSeekV3,
  kDeepSeekCoder,
  kSeedCoder,
};

struct KnownName {
  std::string_view pre;
  Family family;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;
};

constexpr std::array<KnownName, 29> kNames = {{
    {.pre = "gpt-2", .family = Family::kGpt2},
    {.pre = "phi-2", .family = Family::kGpt2},
    {.pre = "olmo", .family = Family::kGpt2},
    {.pre = "mpt", .family = Family::kGpt2},
    {.pre = "jais", .family = Family::kGpt2},
    {.pre = "trillion", .family = Family::kGpt2},
    {.pre = "mellum", .family = Family::kGpt2},
    {.pre = "smollm", .family = Family::kDigitsGpt2},
    {.pre = "starcoder", .family = Family::kDigitsGpt2},
    {.pre = "refact", .family = Family::kDigitsGpt2},
    {.pre = "command-r", .family = Family::kDigitsGpt2},
    {.pre = "codeshell", .family = Family::kDigitsGpt2},
    {.pre = "exaone", .family = Family::kDigitsGpt2},
    {.pre = "minerva-7b", .family = Family::kDigitsGpt2},
    {.pre = "llama-bpe", .family = Family::kLlama3, .ignore_merges = true, .add_bos = true},
    {.pre = "llama3", .family = Family::kLlama3, .ignore_merges = true, .add_bos = true},
    {.pre = "llama-v3", .family = Family::kLlama3, .ignore_merges = true, .add_bos = true},
    {.pre = "falcon3", .family = Family::kLlama3, .ignore_merges = true, .add_bos = true},
    {.pre = "smaug-bpe", .family = Family::kLlama3},
    {.pre = "dbrx", .family = Family::kLlama3},
    {.pre = "qwen2", .family = Family::kQwen2, .nfc = true},
    {.pre = "deepseek-r1-qwen", .family = Family::kQwen2},
    {.pre = "qwen35", .family = Family::kQwen35, .nfc = true},
    {.pre = "tekken", .family = Family::kTekken, .ignore_merges = true, .add_bos = true},
    {.pre = "gpt-4o", .family = Family::kO200k, .ignore_merges = true},
    {.pre = "llama4", .family = Family::kO200k, .ignore_merges = true},
    {.pre = "deepseek-v3", .family = Family::kDeepSeekV3},
    {.pre = "deepseek-coder", .family = Family::kDeepSeekCoder},
    {.pre = "seed-coder", .family = Family::kSeedCoder},
}};

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeekV3Words =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kSeedCoder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

json::object ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json::object Split(std::string_view regex) {
  return {{"type", "Split"},
          {"pattern", json::object{{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json::object Sequence(json::array steps) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

// Splits one after the other, then bytes.
json::object Splits(std::initializer_list<std::string_view> patterns) {
  json::array steps;
  for (const std::string_view pattern : patterns) steps.push_back(Split(pattern));
  steps.push_back(ByteLevel(false));
  return Sequence(std::move(steps));
}

json::object Digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }

json::object PreTokenizerOf(Family family) {
  switch (family) {
    case Family::kGpt2:
      return ByteLevel(true);
    case Family::kDigitsGpt2:
      return Sequence({Digits(), ByteLevel(true)});
    case Family::kLlama3:
      return Splits({kLlama3});
    case Family::kQwen2:
      return Splits({kQwen2});
    case Family::kQwen35:
      return Splits({kQwen35});
    case Family::kTekken:
      return Splits({kTekken});
    case Family::kO200k:
      return Splits({kO200k});
    case Family::kDeepSeekV3:
      return Splits(
          {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", kDeepSeekV3Words});
    case Family::kDeepSeekCoder:
      return Sequence({Split(R"([\r\n])"), Split(R"(\s?\p{L}+)"), Split(R"(\s?\p{P}+)"),
                       Split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), Digits(),
                       ByteLevel(false)});
    case Family::kSeedCoder:
      return Splits({kSeedCoder});
  }
  return {};
}

}  // namespace

std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view pre) {
  for (const KnownName& known : kNames) {
    if (known.pre != pre) continue;
    GgufPreTokenizer result;
    result.pre_tokenizer = PreTokenizerOf(known.family);
    if (known.nfc) result.normalizer = json::object{{"type", "NFC"}};
    result.ignore_merges = known.ignore_merges;
    result.add_bos = known.add_bos;
    return result;
  }
  return std::nullopt;
}

std::string KnownGgufPreTokenizers() {
  std::string list;
  for (const KnownName& known : kNames) {
    if (!list.empty()) list += ", ";
    list += known.pre;
  }
  return list;
}

}  // namespace nibble::formats
