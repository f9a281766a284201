#include "formats/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/log.h"
#include "formats/gguf_config.h"
#include "formats/gguf_pretokenizers.h"
#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

enum class TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr std::string_view kSpaceMark = "\u2581";  // SentencePiece's visible space
constexpr size_t kMaxPieceBytes = 1024;            // bounds the search for merges

// True for well-formed UTF-8 (no surrogates, no overlong forms).
bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    const int length = lead < 0x80   ? 1
                       : lead < 0xC2 ? 0
                       : lead < 0xE0 ? 2
                       : lead < 0xF0 ? 3
                       : lead < 0xF5 ? 4
                                     : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (int k = 1; k < length; ++k) {
      if ((static_cast<uint8_t>(text[i + k]) & 0xC0) != 0x80) return false;
    }
    const auto second = length > 1 ? static_cast<uint8_t>(text[i + 1]) : uint8_t{0x80};
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
        (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) {
      return false;
    }
    i += length;
  }
  return true;
}

bool StartsCharacter(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

int64_t CountCharacters(std::string_view text) {
  return std::ranges::count_if(text, StartsCharacter);
}

struct Vocabulary {
  std::span<const std::string_view> tokens;
  std::vector<TokenType> types;
  std::unordered_map<std::string_view, int64_t> ids;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  bool IsAdded(int64_t id) const {
    return types[id] == TokenType::kControl || types[id] == TokenType::kUserDefined ||
           types[id] == TokenType::kUnknown;
  }
};

Result<Vocabulary> ReadVocabulary(const GgufFile& file) {
  Vocabulary vocabulary;
  NIBBLE_ASSIGN(vocabulary.tokens, file.GetStrings("tokenizer.ggml.tokens"));
  const size_t count = vocabulary.tokens.size();
  vocabulary.types.assign(count, TokenType::kNormal);
  if (file.Has("tokenizer.ggml.token_type")) {
    NIBBLE_ASSIGN(const GgufValue* types, file.GetNumbers("tokenizer.ggml.token_type", count));
    for (size_t i = 0; i < count; ++i) {
      const double type = types->FloatAt(i);
      if (type >= 1 && type <= 6)
        vocabulary.types[i] = static_cast<TokenType>(static_cast<int>(type));
    }
  }
  vocabulary.ids.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const std::string_view token = vocabulary.tokens[i];
    if (!IsUtf8(token)) {
      return Fail(Code::kCorruption, "{}: token {} is not valid UTF-8", file.name(), i);
    }
    const auto [at, inserted] = vocabulary.ids.emplace(token, i);
    if (!inserted) {
      return Fail(Code::kCorruption, "{}: token {} has the ids {} and {}", file.name(),
                  Quoted(token), at->second, i);
    }
  }
  return vocabulary;
}

// How many leading tokens belong to the model's own vocabulary. As in published files, a tail of
// added tokens stays outside it, and rows that only pad the embedding are left out altogether.
int64_t ModelVocabularySize(const Vocabulary& vocabulary) {
  int64_t size = vocabulary.size();
  while (size > 0 && vocabulary.types[size - 1] == TokenType::kUnused) --size;
  while (size > 0 && vocabulary.IsAdded(size - 1)) --size;
  return size;
}

json::object VocabularyObject(const Vocabulary& vocabulary, int64_t size) {
  json::object object;
  object.reserve(static_cast<size_t>(size));
  for (int64_t id = 0; id < size; ++id) object.emplace(vocabulary.tokens[id], id);
  return object;
}

json::array AddedTokens(const Vocabulary& vocabulary) {
  json::array added;
  for (int64_t id = 0; id < vocabulary.size(); ++id) {
    if (!vocabulary.IsAdded(id)) continue;
    added.push_back(json::object{{"id", id},
                                 {"content", vocabulary.tokens[id]},
                                 {"single_word", false},
                                 {"lstrip", false},
                                 {"rstrip", false},
                                 {"normalized", false},
                                 {"special", vocabulary.types[id] != TokenType::kUserDefined}});
  }
  return added;
}

// "a b" pairs. A token may itself hold a space, never as its first character alone.
Result<json::array> StoredMerges(const GgufFile& file) {
  NIBBLE_ASSIGN(const auto stored, file.GetStrings("tokenizer.ggml.merges"));
  json::array merges;
  merges.reserve(stored.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    const size_t space = stored[i].find(' ', 1);
    if (space == std::string_view::npos || space + 1 == stored[i].size() || !IsUtf8(stored[i])) {
      return Fail(Code::kCorruption, "{}: tokenizer.ggml.merges [{}] is {}, expected two tokens",
                  file.name(), i, IsUtf8(stored[i]) ? Quoted(stored[i]) : "not UTF-8");
    }
    merges.push_back(json::array{stored[i].substr(0, space), stored[i].substr(space + 1)});
  }
  return merges;
}

// A merge for every way to cut a token into two tokens, the best score first. Ties: the longer left
// part, then the longer right part, then the order of the vocabulary.
Result<json::array> MergesFromScores(const GgufFile& file, const Vocabulary& vocabulary) {
  NIBBLE_ASSIGN(const GgufValue* scores,
                file.GetNumbers("tokenizer.ggml.scores", vocabulary.tokens.size()));
  struct Merge {
    std::string_view left;
    std::string_view right;
    double score;
    int64_t left_characters;
    int64_t right_characters;
  };
  std::vector<Merge> merges;
  for (int64_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view token = vocabulary.tokens[id];
    const double score = scores->FloatAt(id);
    if (std::isnan(score)) {
      return Fail(Code::kCorruption, "{}: tokenizer.ggml.scores [{}] is not a number", file.name(),
                  id);
    }
    if (token.size() > kMaxPieceBytes) {
      return Fail(Code::kUnsupported, "{}: token {} has {} bytes, at most {} are supported",
                  file.name(), id, token.size(), kMaxPieceBytes);
    }
    const int64_t characters = CountCharacters(token);
    std::vector<std::tuple<int64_t, int64_t, Merge>> cuts;
    int64_t left_characters = 0;
    for (size_t cut = 1; cut < token.size(); ++cut) {
      if (!StartsCharacter(token[cut])) continue;
      ++left_characters;
      const auto left = vocabulary.ids.find(token.substr(0, cut));
      if (left == vocabulary.ids.end()) continue;
      const auto right = vocabulary.ids.find(token.substr(cut));
      if (right == vocabulary.ids.end()) continue;
      cuts.emplace_back(
          left->second, right->second,
          Merge{left->first, right->first, score, left_characters, characters - left_characters});
    }
    std::ranges::stable_sort(
        cuts, {}, [](const auto& cut) { return std::pair(std::get<0>(cut), std::get<1>(cut)); });
    for (const auto& cut : cuts) merges.push_back(std::get<2>(cut));
  }
  std::ranges::stable_sort(merges, std::ranges::greater(), [](const Merge& merge) {
    return std::tuple(merge.score, merge.left_characters, merge.right_characters);
  });
  json::array result;
  result.reserve(merges.size());
  for (const Merge& merge : merges) result.push_back(json::array{merge.left, merge.right});
  return result;
}

json::object BpeModel(json::object vocabulary, json::array merges) {
  json::object model;
  model["type"] = "BPE";
  model["dropout"] = nullptr;
  model["unk_token"] = nullptr;
  model["continuing_subword_prefix"] = nullptr;
  model["end_of_word_suffix"] = nullptr;
  model["fuse_unk"] = false;
  model["byte_fallback"] = false;
  model["ignore_merges"] = false;
  model["vocab"] = std::move(vocabulary);
  model["merges"] = std::move(merges);
  return model;
}

// Byte-level: the family by name. Files without one are as old as their architecture's first
// tokenizer.
Result<GgufPreTokenizer> PreTokenizerOf(const GgufFile& file) {
  std::string_view name = "default";
  if (file.Has("tokenizer.ggml.pre")) {
    NIBBLE_ASSIGN(name, file.GetString("tokenizer.ggml.pre"));
  }
  if (name == "default") {
    NIBBLE_ASSIGN(const std::string_view architecture, file.GetString("general.architecture"));
    name = architecture.starts_with("qwen") ? "qwen2" : "gpt-2";
    LogWarning("{}: the file names no pre-tokenizer; {} is assumed", file.name(), name);
  }
  auto found = FindGgufPreTokenizer(name);
  if (!found) {
    return Fail(Code::kUnsupported,
                "{}: tokenizer.ggml.pre is {}, an unknown pre-tokenizer; known: {}", file.name(),
                Quoted(name), KnownGgufPreTokenizers());
  }
  return *std::move(found);
}

struct SpecialTokens {
  int64_t bos = -1;
  int64_t eos = -1;
  int64_t unknown = -1;
  int64_t padding = -1;
  bool add_bos = false;
  bool add_eos = false;
};

Result<bool> FlagOr(const GgufFile& file, std::string_view key, bool fallback) {
  return file.Has(key) ? file.GetBool(key) : Result<bool>(fallback);
}

// "gpt2" or "llama".
Result<std::string_view> TokenizerModel(const GgufFile& file) {
  NIBBLE_ASSIGN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model == "gpt2" || model == "llama") return model;
  return Fail(Code::kUnsupported,
              "{}: tokenizer.ggml.model is {}; supported: gpt2 (byte-level BPE), llama "
              "(SentencePiece BPE)",
              file.name(), Quoted(model));
}

Result<SpecialTokens> ReadSpecialTokens(const GgufFile& file) {
  SpecialTokens special;
  NIBBLE_ASSIGN(special.bos, GgufTokenId(file, "bos"));
  NIBBLE_ASSIGN(special.eos, GgufTokenId(file, "eos"));
  NIBBLE_ASSIGN(special.unknown, GgufTokenId(file, "unknown"));
  NIBBLE_ASSIGN(special.padding, GgufTokenId(file, "padding"));
  NIBBLE_ASSIGN(const std::string_view model, TokenizerModel(file));
  bool add_bos = model == "llama";
  if (model == "gpt2") {
    NIBBLE_ASSIGN(const GgufPreTokenizer pre, PreTokenizerOf(file));
    add_bos = pre.add_bos;
  }
  NIBBLE_ASSIGN(special.add_bos, FlagOr(file, "tokenizer.ggml.add_bos_token", add_bos));
  NIBBLE_ASSIGN(special.add_eos, FlagOr(file, "tokenizer.ggml.add_eos_token", false));
  special.add_bos = special.add_bos && special.bos >= 0;
  special.add_eos = special.add_eos && special.eos >= 0;
  return special;
}

// BOS and EOS around each sequence; null when neither is added.
json::value PostProcessor(const Vocabulary& vocabulary, const SpecialTokens& special) {
  if (!special.add_bos && !special.add_eos) return nullptr;
  json::object tokens;
  const auto token_item = [&](int64_t id, int type_id) {
    const std::string_view text = vocabulary.tokens[id];
    tokens[text] =
        json::object{{"id", text}, {"ids", json::array{id}}, {"tokens", json::array{text}}};
    return json::object{{"SpecialToken", json::object{{"id", text}, {"type_id", type_id}}}};
  };
  const auto add_sequence = [&](json::array* items, std::string_view name, int type_id) {
    if (special.add_bos) items->push_back(token_item(special.bos, type_id));
    items->push_back(json::object{{"Sequence", json::object{{"id", name}, {"type_id", type_id}}}});
    if (special.add_eos) items->push_back(token_item(special.eos, type_id));
  };
  json::array single;
  add_sequence(&single, "A", 0);
  json::array pair;
  add_sequence(&pair, "A", 0);
  add_sequence(&pair, "B", 1);
  return json::object{{"type", "TemplateProcessing"},
                      {"single", std::move(single)},
                      {"pair", std::move(pair)},
                      {"special_tokens", std::move(tokens)}};
}

// Normalizer, pre-tokenizer, model and decoder of one kind of tokenizer.
struct Pipeline {
  json::value normalizer;
  json::value pre_tokenizer;
  json::object model;
  json::object decoder;
};

Result<Pipeline> ByteLevelPipeline(const GgufFile& file, const Vocabulary& vocabulary) {
  NIBBLE_ASSIGN(GgufPreTokenizer pre, PreTokenizerOf(file));
  NIBBLE_ASSIGN(json::array merges, StoredMerges(file));
  Pipeline pipeline;
  pipeline.normalizer = std::move(pre.normalizer);
  pipeline.pre_tokenizer = std::move(pre.pre_tokenizer);
  pipeline.model =
      BpeModel(VocabularyObject(vocabulary, ModelVocabularySize(vocabulary)), std::move(merges));
  pipeline.model["ignore_merges"] = pre.ignore_merges;
  pipeline.decoder = {{"type", "ByteLevel"},
                      {"add_prefix_space", true},
                      {"trim_offsets", true},
                      {"use_regex", true}};
  return pipeline;
}

Result<Pipeline> SentencePiecePipeline(const GgufFile& file, const Vocabulary& vocabulary,
                                       const SpecialTokens& special) {
  const auto replace = [](std::string_view from, std::string_view to) {
    return json::object{
        {"type", "Replace"}, {"pattern", json::object{{"String", from}}}, {"content", to}};
  };
  NIBBLE_ASSIGN(const bool prefix, FlagOr(file, "tokenizer.ggml.add_space_prefix", true));
  NIBBLE_ASSIGN(json::array merges, file.Has("tokenizer.ggml.merges")
                                        ? StoredMerges(file)
                                        : MergesFromScores(file, vocabulary));
  Pipeline pipeline;
  json::array normalizers;
  if (prefix) normalizers.push_back(json::object{{"type", "Prepend"}, {"prepend", kSpaceMark}});
  normalizers.push_back(replace(" ", kSpaceMark));
  pipeline.normalizer = {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}};

  pipeline.model = BpeModel(VocabularyObject(vocabulary, vocabulary.size()), std::move(merges));
  if (special.unknown >= 0) pipeline.model["unk_token"] = vocabulary.tokens[special.unknown];
  pipeline.model["fuse_unk"] = true;
  pipeline.model["byte_fallback"] = true;

  json::array decoders;
  decoders.push_back(replace(kSpaceMark, " "));
  decoders.push_back(json::object{{"type", "ByteFallback"}});
  decoders.push_back(json::object{{"type", "Fuse"}});
  if (prefix) {
    decoders.push_back(
        json::object{{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  pipeline.decoder = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  return pipeline;
}

Result<std::string_view> Template(const GgufFile& file, std::string_view key) {
  NIBBLE_ASSIGN(const std::string_view text, file.GetString(key));
  if (!IsUtf8(text)) return Fail(Code::kCorruption, "{}: {} is not valid UTF-8", file.name(), key);
  return text;
}

// One template, or a list of named ones where the file has several; null where it has none.
Result<json::value> ChatTemplates(const GgufFile& file) {
  constexpr std::string_view kKey = "tokenizer.chat_template";
  json::array named;
  for (const std::string_view key : file.keys()) {
    if (!key.starts_with(kKey)) continue;
    std::string_view name = key.substr(kKey.size());
    if (!name.empty() && name[0] != '.') continue;  // tokenizer.chat_templates lists the names
    NIBBLE_ASSIGN(const std::string_view text, Template(file, key));
    name = name.empty() ? "default" : name.substr(1);
    named.push_back(json::object{{"name", name}, {"template", text}});
  }
  if (named.empty()) return nullptr;
  if (named.size() == 1 && named[0].at("name") == "default") return named[0].at("template");
  return named;
}

}  // namespace

Result<json::object> MakeGgufTokenizer(const GgufFile& metadata) {
  NIBBLE_ASSIGN(const std::string_view model, TokenizerModel(metadata));
  NIBBLE_ASSIGN(const Vocabulary vocabulary, ReadVocabulary(metadata));
  NIBBLE_ASSIGN(const SpecialTokens special, ReadSpecialTokens(metadata));
  NIBBLE_ASSIGN(Pipeline pipeline, model == "gpt2"
                                       ? ByteLevelPipeline(metadata, vocabulary)
                                       : SentencePiecePipeline(metadata, vocabulary, special));
  json::object tokenizer;
  tokenizer["version"] = "1.0";
  tokenizer["truncation"] = nullptr;
  tokenizer["padding"] = nullptr;
  tokenizer["added_tokens"] = AddedTokens(vocabulary);
  tokenizer["normalizer"] = std::move(pipeline.normalizer);
  tokenizer["pre_tokenizer"] = std::move(pipeline.pre_tokenizer);
  tokenizer["post_processor"] = PostProcessor(vocabulary, special);
  tokenizer["decoder"] = std::move(pipeline.decoder);
  tokenizer["model"] = std::move(pipeline.model);
  return tokenizer;
}

Result<json::object> MakeGgufTokenizerConfig(const GgufFile& metadata) {
  NIBBLE_ASSIGN(const Vocabulary vocabulary, ReadVocabulary(metadata));
  NIBBLE_ASSIGN(const SpecialTokens special, ReadSpecialTokens(metadata));
  json::object config;
  config["add_bos_token"] = special.add_bos;
  config["add_eos_token"] = special.add_eos;
  const auto set = [&](std::string_view field, int64_t id) {
    config[field] = id < 0 ? json::value(nullptr) : json::value(vocabulary.tokens[id]);
  };
  set("bos_token", special.bos);
  set("eos_token", special.eos);
  set("unk_token", special.unknown);
  set("pad_token", special.padding);
  NIBBLE_ASSIGN(json::value chat_template, ChatTemplates(metadata));
  if (!chat_template.is_null()) config["chat_template"] = std::move(chat_template);
  config["clean_up_tokenization_spaces"] = false;
  NIBBLE_ASSIGN(const std::string_view architecture, metadata.GetString("general.architecture"));
  const std::string context = fmt::format("{}.context_length", architecture);
  if (metadata.Has(context)) {
    NIBBLE_ASSIGN(config["model_max_length"], metadata.GetInteger(context, 1, int64_t{1} << 31));
  }
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  return config;
}

}  // namespace nibble::formats
