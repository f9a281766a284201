#include "text/byte_tokenizer.h"

#include <boost/json.hpp>

namespace nibble::text {
namespace {

namespace json = boost::json;

bool IsVisible(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) ||
         (byte >= 174 && byte <= 255);
}

// The character by which byte-level vocabularies write a byte: itself, or the next one from U+0100.
std::string StandIn(int byte) {
  int code_point = byte;
  if (!IsVisible(byte)) {
    code_point = 256;
    for (int before = 0; before < byte; ++before) code_point += IsVisible(before) ? 0 : 1;
  }
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

}  // namespace

std::string ByteTokenizerJson() {
  json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[StandIn(byte)] = byte;
  const json::object byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", true},
                                   {"use_regex", false}};
  return json::serialize(json::object{{"version", "1.0"},
                                      {"truncation", nullptr},
                                      {"padding", nullptr},
                                      {"added_tokens", json::array()},
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
                                        {"ignore_merges", false},
                                        {"vocab", std::move(vocab)},
                                        {"merges", json::array()}}}});
}

}  // namespace nibble::text
