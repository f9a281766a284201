#include "text/byte_tokenizer.h"

#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace nibble::text {
namespace {

TEST(ByteTokenizer, GivesEveryByteItsOwnNumber) {
  const auto tokenizer = Tokenizer::Load({.tokenizer_json = ByteTokenizerJson()});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  const auto ids = tokenizer->Encode("a \n\xC3\xBC");
  ASSERT_TRUE(ids) << ids.error().message();
  EXPECT_EQ(*ids, (std::vector<int32_t>{'a', ' ', '\n', 0xC3, 0xBC}));
  EXPECT_EQ(tokenizer->Decode(*ids), "a \n\xC3\xBC");
}

}  // namespace
}  // namespace nibble::text
