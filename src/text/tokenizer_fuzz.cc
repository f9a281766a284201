// A tokenizer.json from untrusted bytes must load or be refused, and what loads must encode and
// decode any text without a crash, a hang or a broken code point. The input is the file, a NUL byte
// and the text to encode.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "text/tokenizer.h"
#include "text/unicode/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble::text;
  nibble::SetLogLevel(nibble::LogLevel::kOff);
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), size);
  const std::string file(input.substr(0, cut));
  constexpr const char* kKimiConfig = R"({"tokenizer_class": "TikTokenTokenizer",
      "added_tokens_decoder": {"300": {"content": "[BOS]"}}})";
  auto tokenizer = Tokenizer::Load({.tokenizer_json = file});
  if (!tokenizer) tokenizer = Tokenizer::Load({.tekken_json = file});
  if (!tokenizer) {
    tokenizer = Tokenizer::Load({.tiktoken_model = file, .tokenizer_config_json = kKimiConfig});
  }
  if (!tokenizer) return 0;
  const std::string_view text = input.substr(std::min(cut + 1, size));
  std::vector<TextRange> untrusted{{text.size() / 3, text.size() / 2}};
  const auto ids = tokenizer->Encode(text, {.untrusted = untrusted});
  if (!ids) return 0;
  for (const int32_t id : *ids) {
    (void)tokenizer->TokenBytes(id);
    (void)tokenizer->TokenText(id);
  }
  Detokenizer detokenizer(*tokenizer, false);
  std::string joined;
  for (const int32_t id : *ids) {
    const std::string piece = detokenizer.Push(id);
    if (FindInvalidUtf8(piece) != piece.size()) std::abort();
    joined += piece;
  }
  joined += detokenizer.Finish();
  if (joined != tokenizer->Decode(*ids, false)) std::abort();
  return 0;
}
