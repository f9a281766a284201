// The tokenizer: text to token ids and back, read from the bytes of a Hugging Face tokenizer.json,
// or of a tekken.json or tiktoken.model.
//
// Pipeline (checkpoints.md of the format: added tokens, normalizer, pre-tokenizer, model,
// post-processor, decoder) follows Hugging Face `tokenizers`, which is the oracle of the tests: ids
// are equal to its ids. Thread-safety: after construction every method is const and may be called
// from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;
};

struct EncodeOptions {
  // Run the post-processor (BOS and the like). Rendered chat templates write their own: false
  // there.
  bool add_special_tokens = true;
  // Parse added tokens marked special, such as <|im_end|>, out of the text. False is the same as
  // `untrusted` over the whole text.
  bool parse_special = true;
  // Ranges in which added tokens marked special are not parsed, not even in part: text that a
  // caller typed never becomes a control token, while the rest of the split is unchanged.
  std::span<const TextRange> untrusted;
};

struct TokenizerFiles {
  // The first of these that is not empty is read.
  std::string tokenizer_json;
  std::string tekken_json;
  std::string tiktoken_model;

  std::string tokenizer_config_json;  // may be empty, but not with tiktoken_model
};

class Tokenizer {
 public:
  static Result<Tokenizer> Load(const TokenizerFiles& files);
  // Of a model that came without tokenizer files: ids decode to their numbers, and text is refused.
  static Tokenizer IdsOnly(int64_t vocab_size);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // kInvalidArgument when text is not valid UTF-8.
  Result<std::vector<int32_t>> Encode(std::string_view text,
                                      const EncodeOptions& options = {}) const;

  // Ids outside the vocabulary (the model's padding rows) decode to nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

  // One past the largest id, added tokens included.
  int32_t vocab_size() const;
  // The bytes that this token stands for in byte-level models ("Ġthe" → " the"), "" if unknown.
  std::string TokenBytes(int32_t id) const;
  // As written in tokenizer.json ("Ġthe"), "" if unknown.
  std::string TokenText(int32_t id) const;
  std::optional<int32_t> TokenId(std::string_view token_text) const;
  bool IsSpecial(int32_t id) const;

  // kInvalidArgument when this cannot be the tokenizer of a model with so many rows of embeddings:
  // a token of its vocabulary, its bos or its eos lies beyond them. Other added tokens that do are
  // only warned of: published files have some for features that the model lacks (Gemma 3 1B's
  // image token), and the engine refuses a prompt that has them. A smaller tokenizer is usual.
  Status CheckFits(int64_t model_vocab_size) const;

  // From tokenizer_config.json, or, where it does not mention them, from the post-processor (of a
  // tekken.json: its <s> and </s>); nullopt where the files name none.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;

  struct Impl;

 private:
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  friend class Detokenizer;
  std::unique_ptr<Impl> impl_;
};

// Incremental decoding of one stream. Never emits part of a code point: incomplete UTF-8 is held
// back; bytes that can never become valid turn into U+FFFD (maximal subparts, as Python does).
// Joined pieces equal Tokenizer::Decode of all ids. The tokenizer must outlive it; one thread.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;
  ~Detokenizer();

  // The text that is certain now; often one token behind for partial UTF-8.
  std::string Push(int32_t id);
  // What was held back. The detokenizer is as new afterwards.
  std::string Finish();

 private:
  struct State;
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<State> state_;
};

}  // namespace nibble::text
