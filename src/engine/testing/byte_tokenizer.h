// A byte-level tokenizer without merges, from a tokenizer.json made here: ids 0..255 are the bytes,
// kEos is the special token "<eos>". For tests.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace nibble::engine {

constexpr int32_t kEos = 256;
constexpr int32_t kByteVocab = 257;

// The visible stand-in that byte-level vocabularies use for a byte.
inline std::string ByteStandIn(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code_point = byte;
  if (!printable(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += printable(b) ? 0 : 1;
  }
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

inline std::shared_ptr<const text::Tokenizer> MakeByteTokenizer() {
  boost::json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[ByteStandIn(byte)] = byte;
  const boost::json::object byte_level = {{"type", "ByteLevel"},
                                          {"add_prefix_space", false},
                                          {"trim_offsets", true},
                                          {"use_regex", false}};
  const boost::json::object file = {{"version", "1.0"},
                                    {"truncation", nullptr},
                                    {"padding", nullptr},
                                    {"added_tokens",
                                     {{{"id", kEos},
                                       {"content", "<eos>"},
                                       {"single_word", false},
                                       {"lstrip", false},
                                       {"rstrip", false},
                                       {"normalized", false},
                                       {"special", true}}}},
                                    {"normalizer", nullptr},
                                    {"pre_tokenizer", byte_level},
                                    {"post_processor", nullptr},
                                    {"decoder", byte_level},
                                    {"model",
                                     {{"type", "BPE"},
                                      {"dropout", nullptr},
                                      {"unk_token", nullptr},
                                      {"continuing_subword_prefix", nullptr},
                                      {"end_of_word_suffix", nullptr},
                                      {"fuse_unk", false},
                                      {"byte_fallback", false},
                                      {"vocab", vocab},
                                      {"merges", boost::json::array()}}}};
  auto tokenizer = text::Tokenizer::Load({.tokenizer_json = boost::json::serialize(file)});
  NIBBLE_CHECK(tokenizer, "{}", tokenizer.error().message());
  return std::make_shared<const text::Tokenizer>(std::move(*tokenizer));
}

}  // namespace nibble::engine
