#include "text/tokenizer.h"

#include <boost/json.hpp>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "text/tokenizer/added_tokens.h"
#include "text/tokenizer/bpe.h"
#include "text/tokenizer/decoder.h"
#include "text/tokenizer/json_fields.h"
#include "text/tokenizer/normalizer.h"
#include "text/tokenizer/post_processor.h"
#include "text/tokenizer/pre_tokenizer.h"
#include "text/tokenizer/ranked_vocabulary.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace json = boost::json;

namespace {

// Positions in a piece are 32 bits wide, and normalizing may multiply a text's length.
constexpr size_t kMaxTextBytes = 256u << 20;

Result<json::value> ParseJson(std::string_view bytes, std::string_view file,
                              json::storage_ptr storage) {
  boost::system::error_code error;
  json::value value = json::parse(json::string_view(bytes.data(), bytes.size()), error, storage);
  if (error) {
    return Fail(Code::kInvalidArgument, "{} is not valid JSON: {}", file, error.message());
  }
  if (!value.is_object()) return Fail(Code::kInvalidArgument, "{} must hold an object", file);
  return value;
}

// The model of tokenizer.json; files of the first versions leave out the type of BPE models.
Result<const json::object*> FindBpe(const json::object& root) {
  const json::value* model = FindField(root, "model");
  if (model == nullptr) return Fail(Code::kInvalidArgument, "tokenizer.json has no model");
  NIBBLE_ASSIGN(const json::object* object, AsObject(*model, "model"));
  if (FindField(*object, "type") == nullptr && FindField(*object, "merges") != nullptr) {
    return object;
  }
  NIBBLE_ASSIGN(const std::string_view type, StringField(*object, "type", "model"));
  if (type != "BPE") {
    return Fail(Code::kUnsupported, "tokenizer.json: model \"{}\" is not supported (BPE is)", type);
  }
  return object;
}

class BpeSink : public PieceSink {
 public:
  BpeSink(const Bpe& bpe, std::vector<int32_t>* ids) : bpe_(bpe), ids_(ids) {}
  Status Take(std::string_view piece) override { return bpe_.Encode(piece, &scratch_, ids_); }

 private:
  const Bpe& bpe_;
  std::vector<int32_t>* ids_;
  Bpe::Scratch scratch_;
};

}  // namespace

struct Tokenizer::Impl {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  AddedTokens added;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  PostProcessor post_processor;
  Decoder decoder;
  std::vector<std::string_view> texts;  // by id; views into bpe and added
  std::vector<bool> special;            // by id
  std::vector<std::string> numbers;     // IdsOnly: what `texts` views

  // bos and eos are what the files say if tokenizer_config.json says nothing.
  static Result<std::unique_ptr<Impl>> FromJson(const std::string& tokenizer_json);
  static Result<std::unique_ptr<Impl>> FromRanks(Result<RankedVocabulary> vocabulary);

  void IndexIds();
  Status CheckPostProcessor() const;
  Status ReadConfig(const std::string& tokenizer_config_json);
  std::optional<int32_t> TokenId(std::string_view text) const;
  const std::string_view* TextOf(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < texts.size() ? &texts[static_cast<size_t>(id)]
                                                             : nullptr;
  }

  Status EncodeBetweenTokens(std::string_view text, bool at_origin,
                             std::span<const uint8_t> untrusted, BpeSink* sink,
                             std::vector<int32_t>* ids) const;
};

Result<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::FromJson(
    const std::string& tokenizer_json) {
  // A document of this size is read once and dropped: its nodes come from one arena.
  json::monotonic_resource arena(tokenizer_json.size() + 4096);
  NIBBLE_ASSIGN(const json::value document, ParseJson(tokenizer_json, "tokenizer.json", &arena));
  const json::object& root = document.get_object();
  const json::value nothing;
  const auto component = [&](std::string_view key) -> const json::value& {
    const json::value* value = FindField(root, key);
    return value != nullptr ? *value : nothing;
  };
  NIBBLE_ASSIGN(Normalizer normalizer, Normalizer::Parse(component("normalizer")));
  NIBBLE_ASSIGN(PreTokenizer pre_tokenizer, PreTokenizer::Parse(component("pre_tokenizer")));
  NIBBLE_ASSIGN(const json::object* model, FindBpe(root));
  NIBBLE_ASSIGN(Bpe bpe, Bpe::Parse(*model, pre_tokenizer.is_byte_level()));
  NIBBLE_ASSIGN(AddedTokens added,
                AddedTokens::Parse(FindField(root, "added_tokens"), bpe.vocabulary(), normalizer));
  NIBBLE_ASSIGN(PostProcessor post_processor, PostProcessor::Parse(component("post_processor")));
  NIBBLE_ASSIGN(Decoder decoder, Decoder::Parse(component("decoder")));
  return std::make_unique<Impl>(Impl{.normalizer = std::move(normalizer),
                                     .pre_tokenizer = std::move(pre_tokenizer),
                                     .bpe = std::move(bpe),
                                     .added = std::move(added),
                                     .bos = post_processor.first_id(),
                                     .eos = post_processor.last_id(),
                                     .post_processor = std::move(post_processor),
                                     .decoder = std::move(decoder)});
}

Result<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::FromRanks(
    Result<RankedVocabulary> vocabulary) {
  if (!vocabulary) return tl::unexpected(std::move(vocabulary).error());
  NIBBLE_ASSIGN(Normalizer normalizer, Normalizer::Parse({}));
  NIBBLE_ASSIGN(PreTokenizer pre_tokenizer, PreTokenizer::ForBytes(vocabulary->split_expression));
  NIBBLE_ASSIGN(Bpe bpe, Bpe::FromRanks(vocabulary->tokens, vocabulary->first_id));
  // A token of the vocabulary with the text of a special one is another token.
  const json::value added_tokens(std::move(vocabulary->added_tokens));
  NIBBLE_ASSIGN(AddedTokens added, AddedTokens::Parse(&added_tokens, TokenTable(), normalizer));
  NIBBLE_ASSIGN(Decoder decoder, Decoder::Parse({{"type", "ByteLevel"}}));
  return std::make_unique<Impl>(
      Impl{.normalizer = std::move(normalizer),
           .pre_tokenizer = std::move(pre_tokenizer),
           .bpe = std::move(bpe),
           .added = std::move(added),
           .bos = vocabulary->bos,
           .eos = vocabulary->eos,
           .post_processor =
               vocabulary->bos ? PostProcessor::InFront(*vocabulary->bos) : PostProcessor(),
           .decoder = std::move(decoder)});
}

Status Tokenizer::Impl::CheckPostProcessor() const {
  if (post_processor.max_id() < static_cast<int32_t>(texts.size())) return {};
  return Fail(Code::kInvalidArgument,
              "tokenizer.json: post_processor adds id {}, the vocabulary ends at {}",
              post_processor.max_id(), texts.size());
}

void Tokenizer::Impl::IndexIds() {
  int32_t max_id = -1;
  bpe.vocabulary().ForEach([&](std::string_view, int32_t id) { max_id = std::max(max_id, id); });
  for (const auto& [id, content] : added.contents()) max_id = std::max(max_id, id);
  texts.resize(static_cast<size_t>(max_id + 1));
  special.resize(texts.size());
  bpe.vocabulary().ForEach(
      [&](std::string_view text, int32_t id) { texts[static_cast<size_t>(id)] = text; });
  for (const auto& [id, content] : added.contents()) texts[static_cast<size_t>(id)] = content;
  for (const std::string& content : added.specials()) {
    if (const auto id = TokenId(content)) special[static_cast<size_t>(*id)] = true;
  }
}

std::optional<int32_t> Tokenizer::Impl::TokenId(std::string_view text) const {
  if (const auto id = added.Find(text)) return id;
  const int32_t id = bpe.vocabulary().Find(text);
  if (id < 0) return std::nullopt;
  return id;
}

// bos_token and eos_token are a string, an object with "content", or null.
Status Tokenizer::Impl::ReadConfig(const std::string& tokenizer_config_json) {
  json::object config;
  if (!tokenizer_config_json.empty()) {
    NIBBLE_ASSIGN(json::value value, ParseJson(tokenizer_config_json, "tokenizer_config.json", {}));
    config = std::move(value.get_object());
  }
  const auto read = [&](const char* key,
                        std::optional<int32_t> fallback) -> Result<std::optional<int32_t>> {
    const json::value* field = config.if_contains(key);
    if (field == nullptr) return fallback;
    if (field->is_object()) field = FindField(field->get_object(), "content");
    if (field == nullptr || field->is_null()) return std::optional<int32_t>();
    if (!field->is_string()) {
      return Fail(Code::kInvalidArgument,
                  "tokenizer_config.json: {} must be a string, an object with \"content\" or null",
                  key);
    }
    const std::optional<int32_t> id = TokenId(std::string_view(field->get_string()));
    if (!id) {
      LogWarning("tokenizer_config.json: {} \"{}\" is not in the vocabulary", key,
                 std::string_view(field->get_string()));
    }
    return id;
  };
  NIBBLE_ASSIGN(bos, read("bos_token", bos));
  NIBBLE_ASSIGN(eos, read("eos_token", eos));
  return {};
}

// Text between two added tokens of the raw set.
Status Tokenizer::Impl::EncodeBetweenTokens(std::string_view text, bool at_origin,
                                            std::span<const uint8_t> untrusted, BpeSink* sink,
                                            std::vector<int32_t>* ids) const {
  NormalizedText normalized;
  if (!normalizer.IsIdentity()) {
    normalized.text = text;
    normalized.untrusted.assign(untrusted.begin(), untrusted.end());
    NIBBLE_TRY(normalizer.Apply(&normalized));
    text = normalized.text;
    untrusted = normalized.untrusted;
    at_origin = at_origin && normalized.starts_at_origin;
  }
  if (added.normalized().empty()) {
    return text.empty() ? Status() : pre_tokenizer.Run(text, at_origin, sink);
  }
  for (const TextPart& part : added.normalized().Split(text, untrusted)) {
    if (part.id != TokenTable::kNone) {
      ids->push_back(part.id);
    } else {
      NIBBLE_TRY(pre_tokenizer.Run(text.substr(part.begin, part.end - part.begin),
                                   at_origin && part.begin == 0, sink));
    }
  }
  return {};
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::Load(const TokenizerFiles& files) {
  auto impl =
      !files.tokenizer_json.empty() ? Impl::FromJson(files.tokenizer_json)
      : !files.tekken_json.empty()  ? Impl::FromRanks(ReadTekken(files.tekken_json))
      : !files.tiktoken_model.empty()
          ? Impl::FromRanks(ReadTiktokenModel(files.tiktoken_model, files.tokenizer_config_json))
          : Fail(Code::kInvalidArgument,
                 "there is no tokenizer: tokenizer.json, "
                 "tekken.json and tiktoken.model are all "
                 "missing or empty");
  if (!impl) return tl::unexpected(std::move(impl).error());
  (*impl)->IndexIds();
  NIBBLE_TRY((*impl)->CheckPostProcessor());
  NIBBLE_TRY((*impl)->ReadConfig(files.tokenizer_config_json));
  return Tokenizer(*std::move(impl));
}

Tokenizer Tokenizer::IdsOnly(int64_t vocab_size) {
  auto impl = Impl::FromJson(
      R"({"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "ByteLevel"}})");
  NIBBLE_CHECK(impl.has_value(), "{}", impl.error().message());
  // A byte-level decoder reads "Ġ" as a space.
  for (int64_t id = 0; id < vocab_size; ++id)
    (*impl)->numbers.push_back(fmt::format("\u0120{}", id));
  (*impl)->texts.assign((*impl)->numbers.begin(), (*impl)->numbers.end());
  (*impl)->special.resize((*impl)->texts.size());
  return Tokenizer(*std::move(impl));
}

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                               const EncodeOptions& options) const {
  if (!impl_->numbers.empty()) {
    return Fail(
        Code::kInvalidArgument,
        "this model has no tokenizer files, so text cannot be read: send token ids, 0 to {}",
        vocab_size() - 1);
  }
  if (text.size() > kMaxTextBytes) {
    return Fail(Code::kTooLarge, "a text of {} bytes cannot be tokenized: at most {} are allowed",
                text.size(), kMaxTextBytes);
  }
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid != text.size()) {
    return Fail(Code::kInvalidArgument, "the text is not valid UTF-8: byte {} of {}", invalid,
                text.size());
  }
  std::vector<uint8_t> untrusted;
  if (!options.parse_special) {
    untrusted.assign(text.size(), 1);
  } else if (!options.untrusted.empty()) {
    untrusted.assign(text.size(), 0);
    for (const TextRange& range : options.untrusted) {
      const size_t end = std::min(range.end, text.size());
      for (size_t i = range.begin; i < end; ++i) untrusted[i] = 1;
    }
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  BpeSink sink(impl_->bpe, &ids);
  for (const TextPart& part : impl_->added.raw().Split(text, untrusted)) {
    if (part.id != TokenTable::kNone) {
      ids.push_back(part.id);
      continue;
    }
    const size_t size = part.end - part.begin;
    const auto part_untrusted = untrusted.empty() ? std::span<const uint8_t>()
                                                  : std::span(untrusted).subspan(part.begin, size);
    NIBBLE_TRY(impl_->EncodeBetweenTokens(text.substr(part.begin, size), part.begin == 0,
                                          part_untrusted, &sink, &ids));
  }
  if (options.add_special_tokens) return impl_->post_processor.Apply(std::move(ids));
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  Detokenizer detokenizer(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.Push(id);
  return text += detokenizer.Finish();
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->texts.size()); }

Status Tokenizer::CheckFits(int64_t model_vocab_size) const {
  int32_t last = -1;
  impl_->bpe.vocabulary().ForEach([&](std::string_view, int32_t id) { last = std::max(last, id); });
  last = std::max({last, impl_->bos.value_or(-1), impl_->eos.value_or(-1)});
  if (last >= model_vocab_size) {
    return Fail(Code::kInvalidArgument,
                "the tokenizer is not this model's: it has the token {:?} with id {}, the model's "
                "vocabulary has {} tokens (config.json: vocab_size)",
                TokenText(last), last, model_vocab_size);
  }
  if (vocab_size() > model_vocab_size) {
    LogWarning(
        "added tokens have ids from {} to {}, the model's vocabulary ends before {}: prompts "
        "cannot "
        "have them",
        model_vocab_size, vocab_size() - 1, model_vocab_size);
  }
  return {};
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  const std::string_view* text = impl_->TextOf(id);
  return text != nullptr ? impl_->decoder.TokenBytes(*text) : std::string();
}

std::string Tokenizer::TokenText(int32_t id) const {
  const std::string_view* text = impl_->TextOf(id);
  return text != nullptr ? std::string(*text) : std::string();
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token_text) const {
  return impl_->TokenId(token_text);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return impl_->TextOf(id) != nullptr && impl_->special[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos; }

struct Detokenizer::State {
  Decoder::State steps;
};

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      state_(std::make_unique<State>(State{tokenizer.impl_->decoder.NewState()})) {}
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;
Detokenizer::~Detokenizer() = default;

std::string Detokenizer::Push(int32_t id) {
  std::string text;
  const std::string_view* token = tokenizer_->impl_->TextOf(id);
  if (token == nullptr || token->empty()) return text;
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return text;
  tokenizer_->impl_->decoder.Push(*token, &state_->steps, &text);
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  tokenizer_->impl_->decoder.Finish(&state_->steps, &text);
  return text;
}

}  // namespace nibble::text
