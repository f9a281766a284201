#include "text/tokenizer/ranked_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_set>
#include <utility>

#include "text/tokenizer/base64.h"
#include "text/tokenizer/split_patterns.h"
#include "text/tokenizer/token_table.h"

namespace nibble::text {

namespace json = boost::json;

namespace {

constexpr std::string_view kTiktokenFile = "tiktoken.model";
constexpr std::string_view kTekkenFile = "tekken.json";
// Loading looks at every cut of every token. The longest published one has 128 bytes.
constexpr size_t kMaxTokenBytes = 1024;

// Ids behind the ranks for special tokens; those that have no name yet are called by their id.
constexpr int32_t kKimiSpecialTokens = 256;

// The first ids of tekken.json files that do not list their special tokens.
constexpr std::array<std::string_view, 20> kTekkenTokensBeforeV11 = {"<unk>",
                                                                     "<s>",
                                                                     "</s>",
                                                                     "[INST]",
                                                                     "[/INST]",
                                                                     "[AVAILABLE_TOOLS]",
                                                                     "[/AVAILABLE_TOOLS]",
                                                                     "[TOOL_RESULTS]",
                                                                     "[/TOOL_RESULTS]",
                                                                     "[TOOL_CALLS]",
                                                                     "[IMG]",
                                                                     "<pad>",
                                                                     "[IMG_BREAK]",
                                                                     "[IMG_END]",
                                                                     "[PREFIX]",
                                                                     "[MIDDLE]",
                                                                     "[SUFFIX]",
                                                                     "[SYSTEM_PROMPT]",
                                                                     "[/SYSTEM_PROMPT]",
                                                                     "[TOOL_CONTENT]"};

json::object AddedToken(int32_t id, std::string_view content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Base64 → the bytes of a token. `where` names the entry in errors.
Result<std::string> TokenBytes(std::string_view base64, std::string_view file, size_t where) {
  std::optional<std::string> bytes = DecodeBase64(base64);
  if (!bytes || bytes->empty() || bytes->size() > kMaxTokenBytes) {
    return Fail(Code::kInvalidArgument,
                "{}: token {} must be the base64 of 1 to {} bytes, not \"{:.40}\"", file, where,
                kMaxTokenBytes, base64);
  }
  return *std::move(bytes);
}

Status CheckTokens(const std::vector<RankedToken>& tokens, std::string_view file) {
  std::unordered_set<std::string_view> seen;
  std::unordered_set<int32_t> ranks;
  for (const RankedToken& token : tokens) {
    if (!seen.insert(token.bytes).second || !ranks.insert(token.rank).second) {
      return Fail(Code::kInvalidArgument, "{}: rank {} or its bytes occur twice", file, token.rank);
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (!seen.contains(std::string_view(&c, 1))) {
      return Fail(Code::kInvalidArgument, "{}: has no token for byte 0x{:02X}", file, byte);
    }
  }
  return {};
}

Result<json::object> ParseObject(std::string_view text, std::string_view file,
                                 json::storage_ptr storage) {
  boost::system::error_code error;
  json::value value = json::parse(text, error, std::move(storage));
  if (error) return Fail(Code::kInvalidArgument, "{} is not valid JSON: {}", file, error.message());
  if (!value.is_object()) return Fail(Code::kInvalidArgument, "{} must hold an object", file);
  return std::move(value.get_object());
}

// ---- tiktoken.model ----

// "aGVsbG8= 1234"
Result<RankedToken> ReadLine(std::string_view line, size_t number) {
  const size_t space = line.find(' ');
  const std::string_view digits = space == line.npos ? "" : line.substr(space + 1);
  RankedToken token;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), token.rank);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size();
  if (!is_number || token.rank < 0 || token.rank > kMaxTokenId) {
    return Fail(Code::kInvalidArgument,
                "{}: line {} must be base64, a space and a rank from 0 to {}", kTiktokenFile,
                number, kMaxTokenId);
  }
  NIBBLE_ASSIGN(token.bytes, TokenBytes(line.substr(0, space), kTiktokenFile, number));
  return token;
}

Status ReadLines(std::string_view file, std::vector<RankedToken>* tokens) {
  size_t number = 0;
  while (!file.empty()) {
    const size_t end = std::min(file.find('\n'), file.size());
    std::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    NIBBLE_ASSIGN(RankedToken token, ReadLine(line, number));
    tokens->push_back(std::move(token));
  }
  return CheckTokens(*tokens, kTiktokenFile);
}

// added_tokens_decoder of tokenizer_config.json, {"163584": {"content": "[BOS]", ...}, ...}. The
// ids that it leaves free up to kKimiSpecialTokens are reserved tokens.
Result<json::array> ReadKimiSpecialTokens(const json::object& config, int32_t first_id) {
  const json::value* listed = config.if_contains("added_tokens_decoder");
  if (listed == nullptr || !listed->is_object()) {
    return Fail(Code::kInvalidArgument,
                "tokenizer_config.json must list the special tokens of {} in added_tokens_decoder",
                kTiktokenFile);
  }
  json::array tokens;
  std::unordered_set<int32_t> used;
  for (const auto& [key, value] : listed->get_object()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const json::object* token = value.if_object();
    const json::value* content = token != nullptr ? token->if_contains("content") : nullptr;
    const bool is_id = error == std::errc() && end == key.data() + key.size() && id >= first_id &&
                       id <= kMaxTokenId;
    if (!is_id || content == nullptr || !content->is_string()) {
      return Fail(Code::kInvalidArgument,
                  "tokenizer_config.json: added_tokens_decoder: \"{:.40}\" must be an id from {} "
                  "(behind the ranks of {}) to {} with a content",
                  std::string_view(key), first_id, kTiktokenFile, kMaxTokenId);
    }
    const json::value* special = token->if_contains("special");
    const bool is_special = special == nullptr || !special->is_bool() || special->get_bool();
    tokens.push_back(AddedToken(id, content->get_string(), is_special));
    used.insert(id);
  }
  for (int32_t id = first_id; id < first_id + kKimiSpecialTokens; ++id) {
    if (used.contains(id)) continue;
    tokens.push_back(AddedToken(id, fmt::format("<|reserved_token_{}|>", id), true));
  }
  return tokens;
}

// ---- tekken.json ----

// A count of config, from `low` up.
Result<int32_t> Count(const json::object& config, std::string_view key, int32_t low) {
  const json::value* value = config.if_contains(key);
  if (value == nullptr || !value->is_int64() || value->get_int64() < low ||
      value->get_int64() > kMaxTokenId) {
    return Fail(Code::kInvalidArgument, "{}: config: {} must be an integer from {} to {}",
                kTekkenFile, key, low, kMaxTokenId);
  }
  return static_cast<int32_t>(value->get_int64());
}

Result<std::vector<RankedToken>> ReadTekkenTokens(const json::object& root, int32_t count) {
  const json::value* entries = root.if_contains("vocab");
  const size_t present =
      entries != nullptr && entries->is_array() ? entries->get_array().size() : 0;
  if (present < static_cast<size_t>(count)) {
    return Fail(Code::kInvalidArgument,
                "{}: vocab has {} tokens, default_vocab_size less default_num_special_tokens asks "
                "for {}",
                kTekkenFile, present, count);
  }
  std::vector<RankedToken> tokens;
  tokens.reserve(static_cast<size_t>(count));
  for (int32_t rank = 0; rank < count; ++rank) {
    const json::object* entry = entries->get_array()[static_cast<size_t>(rank)].if_object();
    const json::value* stored_rank = entry != nullptr ? entry->if_contains("rank") : nullptr;
    const json::value* bytes = entry != nullptr ? entry->if_contains("token_bytes") : nullptr;
    if (stored_rank == nullptr || *stored_rank != rank || bytes == nullptr || !bytes->is_string()) {
      return Fail(Code::kInvalidArgument, "{}: vocab: entry {} must have this rank and token_bytes",
                  kTekkenFile, rank);
    }
    NIBBLE_ASSIGN(std::string text,
                  TokenBytes(bytes->get_string(), kTekkenFile, static_cast<size_t>(rank)));
    tokens.push_back({std::move(text), rank});
  }
  NIBBLE_TRY(CheckTokens(tokens, kTekkenFile));
  return tokens;
}

// Special tokens by id, `count` of them.
Result<std::vector<std::string>> ReadTekkenSpecialTokens(const json::object& root, int32_t count) {
  std::vector<std::string> names;
  const json::value* listed = root.if_contains("special_tokens");
  if (listed == nullptr || listed->is_null()) {
    names.assign(kTekkenTokensBeforeV11.begin(), kTekkenTokensBeforeV11.end());
  } else if (!listed->is_array()) {
    return Fail(Code::kInvalidArgument, "{}: special_tokens must be a list", kTekkenFile);
  } else {
    for (const json::value& item : listed->get_array()) {
      const json::object* entry = item.if_object();
      const json::value* rank = entry != nullptr ? entry->if_contains("rank") : nullptr;
      const json::value* text = entry != nullptr ? entry->if_contains("token_str") : nullptr;
      if (rank == nullptr || *rank != names.size() || text == nullptr || !text->is_string()) {
        return Fail(Code::kInvalidArgument,
                    "{}: special_tokens: entry {} must have this rank and a token_str", kTekkenFile,
                    names.size());
      }
      names.emplace_back(text->get_string());
    }
  }
  if (names.size() > static_cast<size_t>(count)) {
    return Fail(Code::kInvalidArgument,
                "{}: {} special tokens, default_num_special_tokens allows {}", kTekkenFile,
                names.size(), count);
  }
  while (names.size() < static_cast<size_t>(count)) {
    names.push_back(fmt::format("<SPECIAL_{}>", names.size()));
  }
  return names;
}

}  // namespace

Result<RankedVocabulary> ReadTiktokenModel(std::string_view file,
                                           std::string_view tokenizer_config_json) {
  if (tokenizer_config_json.empty()) {
    return Fail(Code::kInvalidArgument,
                "{} needs tokenizer_config.json beside it, which lists the special tokens",
                kTiktokenFile);
  }
  NIBBLE_ASSIGN(const json::object config,
                ParseObject(tokenizer_config_json, "tokenizer_config.json", {}));
  const json::value* name = config.if_contains("tokenizer_class");
  if (name == nullptr || *name != "TikTokenTokenizer") {
    return Fail(Code::kUnsupported,
                "{} does not say how to split text, and tokenizer_config.json names the "
                "tokenizer_class {}: known is \"TikTokenTokenizer\"; convert the tokenizer to "
                "tokenizer.json",
                kTiktokenFile, name == nullptr ? "null" : json::serialize(*name));
  }
  RankedVocabulary vocabulary;
  NIBBLE_TRY(ReadLines(file, &vocabulary.tokens));
  vocabulary.split_expression = kKimiPattern;
  int32_t last = 0;
  for (const RankedToken& token : vocabulary.tokens) last = std::max(last, token.rank);
  if (last > kMaxTokenId - kKimiSpecialTokens - 1) {
    return Fail(Code::kInvalidArgument, "{}: rank {} leaves no ids for special tokens",
                kTiktokenFile, last);
  }
  NIBBLE_ASSIGN(vocabulary.added_tokens, ReadKimiSpecialTokens(config, last + 1));
  return vocabulary;
}

Result<RankedVocabulary> ReadTekken(std::string_view file) {
  json::monotonic_resource arena(file.size() + 4096);
  NIBBLE_ASSIGN(const json::object root, ParseObject(file, kTekkenFile, &arena));
  const json::value* config_field = root.if_contains("config");
  const json::object* config = config_field != nullptr ? config_field->if_object() : nullptr;
  const json::value* pattern = config != nullptr ? config->if_contains("pattern") : nullptr;
  if (pattern == nullptr || !pattern->is_string()) {
    return Fail(Code::kInvalidArgument, "{}: config.pattern must be a string", kTekkenFile);
  }
  RankedVocabulary vocabulary;
  vocabulary.split_expression = std::string(pattern->get_string());
  NIBBLE_ASSIGN(vocabulary.first_id, Count(*config, "default_num_special_tokens", 1));
  NIBBLE_ASSIGN(const int32_t size, Count(*config, "default_vocab_size", vocabulary.first_id));
  NIBBLE_ASSIGN(vocabulary.tokens, ReadTekkenTokens(root, size - vocabulary.first_id));
  NIBBLE_ASSIGN(const std::vector<std::string> names,
                ReadTekkenSpecialTokens(root, vocabulary.first_id));
  for (int32_t id = 0; id < vocabulary.first_id; ++id) {
    const std::string& name = names[static_cast<size_t>(id)];
    vocabulary.added_tokens.push_back(AddedToken(id, name, true));
    if (name == "<s>") vocabulary.bos = id;
    if (name == "</s>") vocabulary.eos = id;
  }
  return vocabulary;
}

}  // namespace nibble::text
