// Integer weights in every layout. Values: W = (q - z) * s of codes, zero points and scales that
// the tests pack by each layout's definition, and words written out by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "numerics/f16.h"
#include "testing/tensor_folder.h"

namespace nibble::formats {
namespace {

// Codes, zero points and scales, unsigned and unpacked.
struct Weight {
  int64_t n;
  int64_t k;
  int64_t group;
  int bits;
  std::vector<int> codes;     // (N, K)
  std::vector<int> zeros;     // (N, G)
  std::vector<float> scales;  // (N, G)

  int64_t groups() const { return (k + group - 1) / group; }
  int code(int64_t row, int64_t column) const {
    return codes[static_cast<size_t>(row * k + column)];
  }
  int zero(int64_t row, int64_t g) const { return zeros[static_cast<size_t>(row * groups() + g)]; }
  float scale(int64_t row, int64_t g) const {
    return scales[static_cast<size_t>(row * groups() + g)];
  }
  float value(int64_t row, int64_t column, int64_t g) const {
    return static_cast<float>(code(row, column) - zero(row, g)) * scale(row, g);
  }
};

Weight RandomWeight(int64_t n, int64_t k, int64_t group, int bits, bool symmetric) {
  std::mt19937 random(static_cast<uint32_t>(n * 7 + k * 3 + group + bits));
  Weight weight{n, k, group, bits, {}, {}, {}};
  const auto below = [&](int limit) { return static_cast<int>(random() % unsigned(limit)); };
  for (int64_t i = 0; i < n * k; ++i) weight.codes.push_back(below(1 << bits));
  for (int64_t i = 0; i < n * weight.groups(); ++i) {
    weight.zeros.push_back(symmetric ? 1 << (bits - 1) : below(1 << bits));
    weight.scales.push_back(static_cast<float>(1 + below(7)) / 64);  // exact in F16
  }
  return weight;
}

// Words of a (rows, columns) matrix of fields: `place(row, column)` = word index and bit.
struct Words {
  std::vector<uint32_t> words;
  void Put(int64_t word, int64_t bit, int field) {
    words[static_cast<size_t>(word)] |= static_cast<uint32_t>(field) << bit;
  }
};

StoredTensor WordTensor(Shape shape, const Words& words) {
  return {DType::kI32, shape, BytesOf(words.words)};
}

Words EmptyWords(int64_t count) { return {std::vector<uint32_t>(static_cast<size_t>(count))}; }

StoredTensor HalfScales(const Weight& weight, bool transposed) {
  std::vector<uint16_t> halves;
  const int64_t groups = weight.groups();
  for (int64_t i = 0; i < weight.n * groups; ++i) {
    halves.push_back(F16FromFloat(transposed ? weight.scale(i % weight.n, i / weight.n)
                                             : weight.scale(i / groups, i % groups)));
  }
  return {DType::kF16, transposed ? Shape{groups, weight.n} : Shape{weight.n, groups},
          BytesOf(halves)};
}

StoredTensors Awq(const Weight& weight) {
  constexpr int kPlace[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // nibble of each of eight columns
  Words codes = EmptyWords(weight.k * weight.n / 8);
  Words zeros = EmptyWords(weight.groups() * weight.n / 8);
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t k = 0; k < weight.k; ++k) {
      codes.Put(k * (weight.n / 8) + n / 8, 4 * kPlace[n % 8], weight.code(n, k));
    }
    for (int64_t g = 0; g < weight.groups(); ++g) {
      zeros.Put(g * (weight.n / 8) + n / 8, 4 * kPlace[n % 8], weight.zero(n, g));
    }
  }
  return {{"p.qweight", WordTensor({weight.k, weight.n / 8}, codes)},
          {"p.qzeros", WordTensor({weight.groups(), weight.n / 8}, zeros)},
          {"p.scales", HalfScales(weight, true)}};
}

StoredTensors Gptq(const Weight& weight, int less) {
  const int64_t fields = 32 / weight.bits;
  Words codes = EmptyWords(weight.k / fields * weight.n);
  Words zeros = EmptyWords(weight.groups() * weight.n / fields);
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t k = 0; k < weight.k; ++k) {
      codes.Put(k / fields * weight.n + n, k % fields * weight.bits, weight.code(n, k));
    }
    for (int64_t g = 0; g < weight.groups(); ++g) {
      const int stored = (weight.zero(n, g) - less) & ((1 << weight.bits) - 1);
      zeros.Put(g * (weight.n / fields) + n / fields, n % fields * weight.bits, stored);
    }
  }
  return {{"p.qweight", WordTensor({weight.k / fields, weight.n}, codes)},
          {"p.qzeros", WordTensor({weight.groups(), weight.n / fields}, zeros)},
          {"p.scales", HalfScales(weight, true)}};
}

StoredTensors CompressedTensors(const Weight& weight, bool with_zeros) {
  const int64_t fields = 32 / weight.bits;
  const int64_t words = (weight.k + fields - 1) / fields;
  const int64_t zero_rows = (weight.n + fields - 1) / fields;
  Words codes = EmptyWords(weight.n * words);
  Words zeros = EmptyWords(zero_rows * weight.groups());
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t k = 0; k < weight.k; ++k) {
      codes.Put(n * words + k / fields, k % fields * weight.bits, weight.code(n, k));
    }
    for (int64_t g = 0; g < weight.groups(); ++g) {
      zeros.Put(n / fields * weight.groups() + g, n % fields * weight.bits, weight.zero(n, g));
    }
  }
  StoredTensors tensors = {
      {"p.weight_packed", WordTensor({weight.n, words}, codes)},
      {"p.weight_scale", HalfScales(weight, false)},
      {"p.weight_shape", {DType::kI64, {2}, BytesOf(std::vector<int64_t>{weight.n, weight.k})}}};
  if (with_zeros) {
    tensors["p.weight_zero_point"] = WordTensor({zero_rows, weight.groups()}, zeros);
  }
  return tensors;
}

StoredTensor GroupIndex(const std::vector<int32_t>& index) {
  return {DType::kI32, {static_cast<int64_t>(index.size())}, BytesOf(index)};
}

class IntWeightsTest : public ::testing::Test {
 protected:
  // Reads "p" and compares it with `weight`, column k of it in group index[k] if that is given.
  void Expect(const StoredTensors& tensors, const Weight& weight, const std::string& config = "{}",
              const std::vector<int32_t>& index = {}) {
    const auto checkpoint = folder_.Open(tensors, config);
    const auto linear = checkpoint->ReadLinear("p", weight.n, weight.k);
    ASSERT_TRUE(linear) << linear.error().message();
    const QuantView& view = linear->view;
    EXPECT_EQ(view.format, weight.bits == 4 ? WeightFormat::kInt4 : WeightFormat::kInt8);
    EXPECT_EQ(view.scale_block_k, weight.group);
    EXPECT_EQ(view.column_order != nullptr, !index.empty());
    EXPECT_EQ(checkpoint->LinearTensors("p").size(), tensors.size());
    for (int64_t n = 0; n < weight.n; ++n) {
      for (int64_t j = 0; j < weight.k; ++j) {
        const int64_t k = view.column_order != nullptr ? view.column_order[j] : j;
        const int64_t group = index.empty() ? k / weight.group : index[static_cast<size_t>(k)];
        ASSERT_EQ(DequantizeElement(view, n, j), weight.value(n, k, group)) << n << ", " << k;
      }
    }
  }

  std::string ErrorOf(const StoredTensors& tensors, const std::string& config = "{}") {
    const auto checkpoint = folder_.Open(tensors, config);
    const auto linear = checkpoint->ReadLinear("p", 0, 0);
    return linear ? "" : folder_.Shorten(linear.error().message());
  }

  TensorFolder folder_;
};

TEST_F(IntWeightsTest, WordsWrittenByHand) {
  const StoredTensor scales{DType::kF32, {1, 8}, BytesOf(std::vector<float>(8, 1.0f))};
  // AWQ: columns of values 0 to 7, then 1 throughout; zero points 0.
  auto checkpoint = folder_.Open(
      {{"p.qweight", {DType::kI32, {2, 1}, {0x20, 0x64, 0x31, 0x75, 0x11, 0x11, 0x11, 0x11}}},
       {"p.qzeros", {DType::kI32, {1, 1}, {}}},
       {"p.scales", scales}});
  for (int n = 0; n < 8; ++n) {
    EXPECT_EQ(DequantizeElement(checkpoint->ReadLinear("p", 8, 2)->view, n, 0), float(n));
  }
  // GPTQ: rows of K of values 0 to 7; symmetric zero points of the first convention.
  StoredTensor words{DType::kI32, {1, 8}, {}};
  for (int i = 0; i < 8; ++i) words.bytes.insert(words.bytes.end(), {0x10, 0x32, 0x54, 0x76});
  checkpoint = folder_.Open({{"p.qweight", words},
                             {"p.qzeros", {DType::kI32, {1, 1}, {0x77, 0x77, 0x77, 0x77}}},
                             {"p.scales", scales}});
  const auto gptq = checkpoint->ReadLinear("p", 8, 8);
  EXPECT_EQ(gptq->view.zeros, nullptr);
  for (int k = 0; k < 8; ++k) EXPECT_EQ(DequantizeElement(gptq->view, 3, k), float(k - 8));
  // compressed-tensors: -8 to -1.
  checkpoint = folder_.Open({{"p.weight_packed", {DType::kI32, {1, 1}, {0x10, 0x32, 0x54, 0x76}}},
                             {"p.weight_scale", {DType::kF32, {1, 1}, FloatBytes({1})}},
                             {"p.weight_shape", {DType::kI32, {2}, {1, 0, 0, 0, 8, 0, 0, 0}}}});
  const auto compressed = checkpoint->ReadLinear("p", 1, 8);
  for (int k = 0; k < 8; ++k) EXPECT_EQ(DequantizeElement(compressed->view, 0, k), float(k - 8));
  // ModelOpt: row 0 in the low nibbles, row 1 in the high ones, two's complement.
  checkpoint = folder_.Open({{"p.weight", {DType::kU8, {1, 2}, {0x7F, 0x81}}},
                             {"p.weight_scale", {DType::kF32, {2, 1}, FloatBytes({1, 1})}}});
  const auto modelopt = checkpoint->ReadLinear("p", 2, 2);
  EXPECT_EQ(DequantizeAll(modelopt->view), (std::vector<float>{-1, 1, 7, -8}));
}

TEST_F(IntWeightsTest, Awq) {
  for (const auto& [n, k, group] :
       {std::array<int64_t, 3>{24, 96, 32}, {8, 130, 130}, {16, 64, 64}}) {
    Expect(Awq(RandomWeight(n, k, group, 4, false)), RandomWeight(n, k, group, 4, false));
    Expect(Awq(RandomWeight(n, k, group, 4, true)), RandomWeight(n, k, group, 4, true));
  }
}

TEST_F(IntWeightsTest, GptqInBothConventionsOfZeroPoints) {
  const std::string v2 = R"({"quantization_config": {"checkpoint_format": "gptq_v2"}})";
  for (const int bits : {4, 8}) {
    for (const bool symmetric : {false, true}) {
      const Weight weight = RandomWeight(24, 96, 32, bits, symmetric);
      Expect(Gptq(weight, 1), weight);
      Expect(Gptq(weight, 1), weight,
             R"({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq"}})");
      Expect(Gptq(weight, 0), weight, v2);
    }
    // A symmetric file shows its convention.
    const Weight symmetric = RandomWeight(24, 96, 32, bits, true);
    for (const char* format : {"gptq", "gptq_v2"}) {
      const std::string config = fmt::format(
          R"({{"quantization_config": {{"sym": true, "checkpoint_format": "{}"}}}})", format);
      Expect(Gptq(symmetric, 0), symmetric, config);
      Expect(Gptq(symmetric, 1), symmetric, config);
      EXPECT_NE(ErrorOf(Gptq(RandomWeight(24, 96, 32, bits, false), 1), config)
                    .find("\"p.qzeros\": zero points differ"),
                std::string::npos);
    }
  }
}

TEST_F(IntWeightsTest, CompressedTensorsSymmetricAndAsymmetric) {
  for (const int bits : {4, 8}) {
    for (const auto& [n, k, group] :
         {std::array<int64_t, 3>{24, 96, 32}, {5, 36, 36}, {9, 64, 16}}) {
      const Weight symmetric = RandomWeight(n, k, group, bits, true);
      Expect(CompressedTensors(symmetric, false), symmetric);
      Expect(CompressedTensors(symmetric, true), symmetric);
      const Weight asymmetric = RandomWeight(n, k, group, bits, false);
      Expect(CompressedTensors(asymmetric, true), asymmetric);
    }
  }
}

TEST_F(IntWeightsTest, FullWordsAreViewedInPlace) {
  const auto checkpoint = folder_.Open(CompressedTensors(RandomWeight(8, 64, 32, 4, true), false));
  EXPECT_EQ(checkpoint->ReadLinear("p", 8, 64)->view.data,
            checkpoint->Read("p.weight_packed")->view.data);
}

TEST_F(IntWeightsTest, AShorterLastGroup) {
  const Weight weight = RandomWeight(8, 80, 32, 4, false);  // groups of 32, 32 and 16
  Expect(CompressedTensors(weight, true), weight);
  Expect(Awq(weight), weight);
  const Weight odd = RandomWeight(8, 72, 20, 4, false);
  const std::string config = R"({"quantization_config": {"group_size": 20}})";
  Expect(Gptq(odd, 1), odd, config);
  Expect(CompressedTensors(odd, true), odd,
         R"({"quantization_config": {"config_groups": {"g": {"weights": {"group_size": 20}}}}})");
}

TEST_F(IntWeightsTest, ActOrderSortsColumns) {
  for (const int bits : {4, 8}) {
    const Weight weight = RandomWeight(8, 96, 32, bits, false);
    std::vector<int32_t> index(96);
    for (size_t k = 0; k < index.size(); ++k) index[k] = static_cast<int32_t>(k / 32);
    const std::vector<int32_t> trivial = index;
    std::mt19937 random(1);
    std::ranges::shuffle(index, random);
    StoredTensors gptq = Gptq(weight, 1);
    gptq["p.g_idx"] = GroupIndex(index);
    Expect(gptq, weight, "{}", index);
    gptq["p.g_idx"] = GroupIndex(trivial);
    Expect(gptq, weight);
    StoredTensors compressed = CompressedTensors(weight, true);
    compressed["p.weight_g_idx"] = GroupIndex(index);
    Expect(compressed, weight, "{}", index);
    compressed["p.weight_g_idx"] = GroupIndex(std::vector<int32_t>(96, -1));
    Expect(compressed, weight);
  }
}

TEST_F(IntWeightsTest, ActOrderIsStable) {
  const Weight weight = RandomWeight(8, 8, 4, 8, false);
  StoredTensors tensors = Gptq(weight, 1);
  tensors["p.g_idx"] = GroupIndex({1, 0, 1, 0, 0, 1, 0, 1});
  const auto linear = folder_.Open(tensors)->ReadLinear("p", 8, 8);
  ASSERT_TRUE(linear) << linear.error().message();
  EXPECT_EQ(std::vector<int32_t>(linear->view.column_order, linear->view.column_order + 8),
            (std::vector<int32_t>{1, 3, 4, 6, 0, 2, 5, 7}));
}

TEST_F(IntWeightsTest, SignedBytes) {
  StoredTensors tensors = {{"p.weight", {DType::kI8, {2, 3}, {0, 1, 127, 128, 255, 2}}},
                           {"p.weight_scale", {DType::kF32, {2, 1}, FloatBytes({1, 0.5f})}}};
  const std::vector<float> expected = {0, 1, 127, -64, -0.5f, 1};
  EXPECT_EQ(DequantizeAll(folder_.Open(tensors)->ReadLinear("p", 2, 3)->view), expected);
  tensors["p.weight_scale"].shape = {2};  // ModelOpt
  EXPECT_EQ(DequantizeAll(folder_.Open(tensors)->ReadLinear("p", 2, 3)->view), expected);
  tensors["p.weight_zero_point"] = {DType::kI8, {2, 1}, {0xFF, 0}};
  EXPECT_EQ(DequantizeAll(folder_.Open(tensors)->ReadLinear("p", 2, 3)->view),
            (std::vector<float>{1, 2, 128, -64, -0.5f, 1}));
  tensors.erase("p.weight_zero_point");
  tensors["p.weight_scale"] = {DType::kF32, {1}, FloatBytes({2})};
  EXPECT_EQ(DequantizeAll(folder_.Open(tensors)->ReadLinear("p", 2, 3)->view),
            (std::vector<float>{0, 2, 254, -256, -2, 4}));
}

TEST_F(IntWeightsTest, DefectsAreNamed) {
  const Weight weight = RandomWeight(8, 96, 32, 4, false);
  for (const char* missing : {"qzeros", "scales"}) {
    StoredTensors tensors = Awq(weight);
    tensors.erase(fmt::format("p.{}", missing));
    EXPECT_EQ(ErrorOf(tensors),
              fmt::format("tensor \"p.qweight\": I32 needs p.{}, which is missing", missing));
  }
  for (const char* missing : {"weight_scale", "weight_shape"}) {
    StoredTensors tensors = CompressedTensors(weight, true);
    tensors.erase(fmt::format("p.{}", missing));
    EXPECT_EQ(ErrorOf(tensors),
              fmt::format("tensor \"p.weight_packed\": I32 needs p.{}, which is missing", missing));
  }
  StoredTensors tensors = CompressedTensors(weight, true);
  tensors["p.weight_scale"].shape = {8, 97};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_scale\": F16 [8, 97], expected [8, groups] with 1 to 96 groups of "
            "equal size along K = 96 beside \"p.weight_packed\" [8, 12]");
  tensors = CompressedTensors(weight, true);
  tensors["p.weight_zero_point"].shape = {2, 3};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_zero_point\": I32 [2, 3], expected I32 [1, 3] beside "
            "\"p.weight_packed\" [8, 12]");
  tensors = CompressedTensors(weight, true);
  tensors["p.weight_shape"].bytes = BytesOf(std::vector<int64_t>{8, 128});
  EXPECT_NE(ErrorOf(tensors).find("\"p.weight_packed\": I32 [8, 12], expected [8, 16] (INT4)"),
            std::string::npos);
  tensors["p.weight_shape"].bytes = BytesOf(std::vector<int64_t>{8, -1});
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_shape\": element 1 is -1, expected 1 to 2147483648");
  tensors = Awq(weight);
  tensors["p.scales"].bytes[4] = 0;
  tensors["p.scales"].bytes[5] = 0x7C;
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.scales\": element [2, 0] is inf, expected finite");
  tensors = Awq(weight);
  tensors["p.qzeros"].shape = {2, 1};
  EXPECT_NE(ErrorOf(tensors).find("\"p.qzeros\": I32 [2, 1], expected I32 [3, 1]"),
            std::string::npos);
  tensors["p.qweight"].shape = {24, 4};  // half as many fields: 8 bits
  EXPECT_NE(ErrorOf(tensors).find("expected 1 words per row (4-bit AWQ in its gemm layout) or 8"),
            std::string::npos);
  tensors = Gptq(weight, 1);
  tensors["p.qzeros"].shape = {4, 0};
  EXPECT_NE(ErrorOf(tensors).find("expected [groups, 1] (4-bit) or [groups, 2] (8-bit)"),
            std::string::npos);
  tensors = Gptq(weight, 1);
  std::vector<int32_t> index(96, 0);
  tensors["p.g_idx"] = GroupIndex(index);
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.g_idx\": group 0 has more or fewer than 32 columns; groups of unequal size "
            "are not supported");
  index[95] = 3;
  tensors["p.g_idx"] = GroupIndex(index);
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.g_idx\": element 95 is 3, expected a group, 0 to 2");
}

}  // namespace
}  // namespace nibble::formats
