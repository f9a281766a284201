// The same experts in every layout in which they are published: whatever way they are stored, each
// expert's projection dequantises to the same rows.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "testing/tensor_folder.h"

namespace nibble::formats {
namespace {

constexpr int64_t kExperts = 3;
constexpr int64_t kF = 32;  // intermediate size
constexpr int64_t kD = 96;  // hidden size
const char* const kProjections[] = {"gate_proj", "up_proj", "down_proj"};
const std::string kModule = "model.layers.0.mlp.experts";

// Bytes of (rows, columns) elements.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t element_bytes = 1;
  std::vector<uint8_t> bytes;
};

Matrix RandomMatrix(int64_t rows, int64_t columns, int64_t element_bytes, uint32_t seed,
                    uint8_t low = 0, uint8_t high = 255) {
  std::mt19937 random(seed);
  Matrix matrix{rows, columns, element_bytes, {}};
  for (int64_t i = 0; i < rows * columns * element_bytes; ++i) {
    matrix.bytes.push_back(static_cast<uint8_t>(low + random() % (high - low + 1u)));
  }
  return matrix;
}

Matrix Transposed(const Matrix& in) {
  Matrix out{in.columns, in.rows, in.element_bytes, std::vector<uint8_t>(in.bytes.size())};
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int64_t column = 0; column < in.columns; ++column) {
      for (int64_t byte = 0; byte < in.element_bytes; ++byte) {
        out.bytes[static_cast<size_t>((column * in.rows + row) * in.element_bytes + byte)] =
            in.bytes[static_cast<size_t>((row * in.columns + column) * in.element_bytes + byte)];
      }
    }
  }
  return out;
}

// Rows of both, one block after the other or in turn.
Matrix Pair(const Matrix& gate, const Matrix& up, bool interleaved) {
  Matrix out{2 * gate.rows, gate.columns, gate.element_bytes, {}};
  const auto row_bytes = static_cast<size_t>(gate.columns * gate.element_bytes);
  const auto append = [&](const Matrix& from, int64_t row) {
    const auto begin = from.bytes.begin() + row * static_cast<int64_t>(row_bytes);
    out.bytes.insert(out.bytes.end(), begin, begin + static_cast<int64_t>(row_bytes));
  };
  for (int64_t i = 0; i < 2 * gate.rows; ++i) {
    const bool is_up = interleaved ? i % 2 == 1 : i >= gate.rows;
    append(is_up ? up : gate, interleaved ? i / 2 : i % gate.rows);
  }
  return out;
}

// A format's weight and scale bytes, as matrices that have the rows of the linear.
struct Format {
  const char* name;
  DType dtype;
  int64_t codes_per_byte;  // or 1
  DType scale_dtype;
  int64_t scale_block;  // along K; 0: no scales
};

constexpr Format kFormats[] = {
    {"bf16", DType::kBF16, 1, DType::kBF16, 0},   {"f32", DType::kF32, 1, DType::kF32, 0},
    {"nvfp4", DType::kU8, 2, DType::kF8E4M3, 16}, {"mxfp4", DType::kU8, 2, DType::kU8, 32},
    {"mxfp8", DType::kF8E4M3, 1, DType::kU8, 32}, {"fp8", DType::kF8E4M3, 1, DType::kF32, kD* kF}};

struct Expert {
  Matrix weight[3];  // gate, up, down
  Matrix scale[3];
};

class ExpertsTest : public ::testing::TestWithParam<Format> {
 protected:
  void SetUp() override {
    const Format& format = GetParam();
    for (int64_t e = 0; e < kExperts; ++e) {
      for (int p = 0; p < 3; ++p) {
        const int64_t n = p == 2 ? kD : kF;
        const int64_t k = p == 2 ? kF : kD;
        const auto seed = static_cast<uint32_t>(10 * e + p);
        // Bytes below 0x60 are finite in every dtype here.
        experts_[e].weight[p] =
            RandomMatrix(n, k / format.codes_per_byte, DTypeBits(format.dtype) / 8, seed, 0,
                         format.dtype == DType::kU8 ? 255 : 0x5F);
        if (format.scale_block == 0) continue;
        const bool per_row = format.scale_dtype == DType::kF32;
        experts_[e].scale[p] =
            RandomMatrix(n, per_row ? 1 : k / format.scale_block, DTypeBits(format.scale_dtype) / 8,
                         seed + 100, 0x30, 0x3F);
      }
    }
  }

  StoredTensors PerExpert(const std::array<const char*, 3>& names) const {
    StoredTensors tensors;
    for (int64_t e = 0; e < kExperts; ++e) {
      for (size_t p = 0; p < 3; ++p) {
        const std::string prefix = fmt::format("{}.{}.{}", kModule, e, names[p]);
        const Matrix& weight = experts_[e].weight[p];
        const Matrix& scale = experts_[e].scale[p];
        tensors[prefix + ".weight"] = {
            GetParam().dtype, {weight.rows, weight.columns}, weight.bytes};
        if (GetParam().scale_block == 0) continue;
        tensors[prefix + ".weight_scale"] = {
            GetParam().scale_dtype, {scale.rows, scale.columns}, scale.bytes};
        if (std::string(GetParam().name) == "nvfp4") {
          tensors[prefix + ".weight_scale_2"] = {DType::kF32, {}, FloatBytes({0.25f})};
        }
      }
    }
    return tensors;
  }

  // One tensor of all experts' matrices.
  static StoredTensor Stack(DType dtype, const std::vector<Matrix>& matrices, bool transposed) {
    StoredTensor tensor{dtype, {}, {}};
    for (const Matrix& matrix : matrices) {
      const Matrix lying = transposed ? Transposed(matrix) : matrix;
      tensor.shape = {kExperts, lying.rows, lying.columns};
      tensor.bytes.insert(tensor.bytes.end(), lying.bytes.begin(), lying.bytes.end());
    }
    return tensor;
  }

  StoredTensors Stacked(bool transposed, bool interleaved, const std::string& scale_suffix) const {
    std::vector<Matrix> pair, pair_scale, down, down_scale;
    for (const Expert& expert : experts_) {
      pair.push_back(Pair(expert.weight[0], expert.weight[1], interleaved));
      pair_scale.push_back(Pair(expert.scale[0], expert.scale[1], interleaved));
      down.push_back(expert.weight[2]);
      down_scale.push_back(expert.scale[2]);
    }
    StoredTensors tensors;
    const std::string gate_up = kModule + ".gate_up_proj";
    const std::string down_name = kModule + ".down_proj";
    tensors[gate_up] = Stack(GetParam().dtype, pair, transposed);
    tensors[down_name] = Stack(GetParam().dtype, down, transposed);
    if (GetParam().scale_block == 0) return tensors;
    tensors[gate_up + scale_suffix] = Stack(GetParam().scale_dtype, pair_scale, transposed);
    tensors[down_name + scale_suffix] = Stack(GetParam().scale_dtype, down_scale, transposed);
    if (std::string(GetParam().name) == "nvfp4") {
      tensors[gate_up + "_weight_scale_2"] = {DType::kF32, {}, FloatBytes({0.25f})};
      tensors[down_name + "_weight_scale_2"] = {
          DType::kF32, {kExperts}, FloatBytes({0.25f, 0.25f, 0.25f})};
    }
    return tensors;
  }

  void ExpectSame(const Checkpoint& checkpoint, const ExpertLayout& layout) const {
    const auto own = TensorFolder().Open(PerExpert({"gate_proj", "up_proj", "down_proj"}));
    for (int64_t e = 0; e < kExperts; ++e) {
      for (int p = 0; p < 3; ++p) {
        const int64_t n = p == 2 ? kD : kF;
        const int64_t k = p == 2 ? kF : kD;
        const auto expected =
            own->ReadLinear(fmt::format("{}.{}.{}", kModule, e, kProjections[p]), n, k);
        ASSERT_TRUE(expected) << expected.error().message();
        const auto got = checkpoint.ReadExpert(kModule, e, kProjections[p], n, k, layout);
        ASSERT_TRUE(got) << got.error().message();
        EXPECT_EQ(got->view.format, expected->view.format);
        EXPECT_EQ(DequantizeAll(got->view), DequantizeAll(expected->view))
            << e << " " << kProjections[p];
        EXPECT_EQ(*checkpoint.ExpertFormat(kModule, e, kProjections[p], n, k, layout),
                  expected->view.format);
      }
    }
  }

  Expert experts_[kExperts];
  TensorFolder folder_;
};

TEST_P(ExpertsTest, PerExpertNames) {
  ExpectSame(*folder_.Open(PerExpert({"gate_proj", "up_proj", "down_proj"})), {});
  ExpectSame(*folder_.Open(PerExpert({"w1", "w3", "w2"})), {});
}

TEST_P(ExpertsTest, StackedInEitherOrientation) {
  for (const bool transposed : {false, true}) {
    for (const bool interleaved : {false, true}) {
      for (const char* suffix : {"_weight_scale", "_scale_inv", "_scales_inv"}) {
        const auto checkpoint = folder_.Open(Stacked(transposed, interleaved, suffix));
        ExpectSame(*checkpoint, {.interleaved = interleaved, .transposed = transposed});
        ExpectSame(*checkpoint, {.interleaved = interleaved, .transposed = {}});
        EXPECT_FALSE(
            checkpoint->ReadExpert(kModule, 0, "up_proj", kF, kD,
                                   {.interleaved = interleaved, .transposed = !transposed}));
      }
    }
  }
}

TEST_P(ExpertsTest, RowsThatLieTogetherAreNotCopied) {
  const auto checkpoint = folder_.Open(Stacked(false, false, "_weight_scale"));
  const auto whole = checkpoint->Read(kModule + ".gate_up_proj");
  const auto up = checkpoint->ReadExpert(kModule, 1, "up_proj", kF, kD, {});
  ASSERT_TRUE(up) << up.error().message();
  EXPECT_EQ(up->view.data, whole->view.data + whole->view.bytes() / 2);
}

INSTANTIATE_TEST_SUITE_P(Formats, ExpertsTest, ::testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::string(info.param.name); });

// --- what is particular to one layout ---

class StackedExpertsTest : public ::testing::Test {
 protected:
  std::string ErrorOf(const StoredTensors& tensors, const char* projection, int64_t n, int64_t k,
                      int64_t expert = 0, const ExpertLayout& layout = {}) {
    const auto checkpoint = folder_.Open(tensors);
    const auto read = checkpoint->ReadExpert("e", expert, projection, n, k, layout);
    return read ? "" : folder_.Shorten(read.error().message());
  }

  TensorFolder folder_;
};

TEST_F(StackedExpertsTest, BlocksAsGptOssStoresThem) {
  // (1, 2F = 4, K/32 = 2, 16): row r holds codes r + 1, scales 127 + r.
  StoredTensor blocks{DType::kU8, {1, 4, 2, 16}, {}};
  StoredTensor scales{DType::kU8, {1, 4, 2}, {}};
  for (int row = 0; row < 4; ++row) {
    blocks.bytes.insert(blocks.bytes.end(), 32, static_cast<uint8_t>((row + 1) * 0x11));
    scales.bytes.insert(scales.bytes.end(), 2, static_cast<uint8_t>(127 + row));
  }
  const auto checkpoint =
      folder_.Open({{"e.gate_up_proj_blocks", blocks},
                    {"e.gate_up_proj_scales", scales},
                    {"e.gate_up_proj_bias", {DType::kF32, {1, 4}, FloatBytes({1, 2, 3, 4})}}});
  const ExpertLayout layout{.interleaved = true, .transposed = {}};
  const auto up = checkpoint->ReadExpert("e", 0, "up_proj", 2, 64, layout);
  ASSERT_TRUE(up) << up.error().message();
  EXPECT_EQ(up->view.format, WeightFormat::kMxfp4);
  EXPECT_EQ(DequantizeElement(up->view, 0, 33), 1.0f * 2);  // row 1: code 2, scale 2^1
  EXPECT_EQ(DequantizeElement(up->view, 1, 0), 2.0f * 8);   // row 3: code 4, scale 2^3
  EXPECT_EQ(*checkpoint->ReadExpertBias("e", 0, "up_proj", 2, layout), (std::vector<float>{2, 4}));
  EXPECT_EQ(*checkpoint->ReadExpertBias("e", 0, "gate_proj", 2, {}), (std::vector<float>{1, 2}));
  // A model whose BF16 stacks are transposed says so of its blocks, too, which are not.
  for (const bool transposed : {false, true}) {
    const auto same = checkpoint->ReadExpert("e", 0, "up_proj", 2, 64,
                                             {.interleaved = true, .transposed = transposed});
    ASSERT_TRUE(same) << same.error().message();
    EXPECT_EQ(DequantizeAll(same->view), DequantizeAll(up->view));
  }
  EXPECT_TRUE(checkpoint->ReadExpertBias("e", 0, "down_proj", 2, layout)->empty());
  EXPECT_EQ(checkpoint->ExpertTensors("e", 0, "up_proj"),
            (std::vector<std::string>{"e.gate_up_proj_blocks", "e.gate_up_proj_scales",
                                      "e.gate_up_proj_bias"}));
  EXPECT_TRUE(checkpoint->ExpertTensors("e", 0, "down_proj").empty());
}

TEST_F(StackedExpertsTest, ASquareStackLiesAsItsPartnerDoes) {
  // D = F = 2, as gpt-oss has it: down_proj (1, 2, 2) fits both ways, gate_up_proj (1, 2, 4) one.
  StoredTensors tensors = {
      {"e.down_proj", {DType::kF32, {1, 2, 2}, FloatBytes({1, 2, 3, 4})}},
      {"e.gate_up_proj", {DType::kF32, {1, 2, 4}, {}}},
  };
  const auto columns = folder_.Open(tensors)->ReadExpert("e", 0, "down_proj", 2, 2, {});
  ASSERT_TRUE(columns) << columns.error().message();
  EXPECT_EQ(DequantizeAll(columns->view), (std::vector<float>{1, 3, 2, 4}));
  tensors["e.gate_up_proj"].shape = {1, 4, 2};
  const auto rows = folder_.Open(tensors)->ReadExpert("e", 0, "down_proj", 2, 2, {});
  ASSERT_TRUE(rows) << rows.error().message();
  EXPECT_EQ(DequantizeAll(rows->view), (std::vector<float>{1, 2, 3, 4}));
  tensors.erase("e.gate_up_proj");
  EXPECT_EQ(ErrorOf(tensors, "down_proj", 2, 2),
            "tensor \"e.down_proj\": [1, 2, 2] is both (experts, rows, columns) and (experts, "
            "columns, rows) of linears with N = 2, K = 2; the model must say which");
}

TEST_F(StackedExpertsTest, Fp8BlocksThatStraddleGateAndUp) {
  // 2F = 6 rows in blocks of 4: up row 1 is row 4, of the second block.
  const StoredTensors tensors = {
      {"e.gate_up_proj", {DType::kF8E4M3, {1, 6, 32}, std::vector<uint8_t>(192, 0x38)}},
      {"e.gate_up_proj_scale_inv", {DType::kF32, {1, 2, 1}, FloatBytes({2, 3})}}};
  const auto checkpoint =
      folder_.Open(tensors, R"({"quantization_config": {"weight_block_size": [4, 32]}})");
  const auto up = checkpoint->ReadExpert("e", 0, "up_proj", 3, 32, {});
  ASSERT_TRUE(up) << up.error().message();
  EXPECT_EQ(DequantizeElement(up->view, 0, 0), 2.0f);
  EXPECT_EQ(DequantizeElement(up->view, 1, 0), 3.0f);
  const auto odd =
      checkpoint->ReadExpert("e", 0, "up_proj", 3, 32, {.interleaved = true, .transposed = {}});
  ASSERT_TRUE(odd) << odd.error().message();
  EXPECT_EQ(DequantizeElement(odd->view, 1, 0), 2.0f);  // rows 1, 3, 5
  EXPECT_EQ(DequantizeElement(odd->view, 2, 0), 3.0f);
}

TEST_F(StackedExpertsTest, Fp8ScalesPerExpertAndPerTensor) {
  StoredTensors tensors = {
      {"e.down_proj", {DType::kF8E4M3, {2, 4, 32}, std::vector<uint8_t>(256, 0x38)}},
      {"e.down_proj_weight_scale", {DType::kF32, {2}, FloatBytes({2, 3})}},
      {"e.down_proj_input_scale", {DType::kF32, {2}, FloatBytes({4, 5})}}};
  const auto each = folder_.Open(tensors)->ReadExpert("e", 1, "down_proj", 4, 32, {});
  ASSERT_TRUE(each) << each.error().message();
  EXPECT_EQ(DequantizeElement(each->view, 3, 31), 3.0f);
  EXPECT_EQ(each->view.input_scale, 5.0f);
  tensors["e.down_proj_weight_scale"] = {DType::kF32, {}, FloatBytes({7})};
  const auto one = folder_.Open(tensors)->ReadExpert("e", 1, "down_proj", 4, 32, {});
  ASSERT_TRUE(one) << one.error().message();
  EXPECT_EQ(DequantizeElement(one->view, 3, 31), 7.0f);
}

TEST_F(StackedExpertsTest, DefectsAreNamed) {
  StoredTensors tensors = {{"e.gate_up_proj", {DType::kU8, {2, 4, 16}, {}}},
                           {"e.gate_up_proj_weight_scale", {DType::kF8E4M3, {2, 4, 2}, {}}},
                           {"e.gate_up_proj_weight_scale_2", {DType::kF32, {}, FloatBytes({1})}}};
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 32), "");
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 32, 2),
            "tensor \"e.gate_up_proj\": U8 [2, 4, 16], expected an expert 2");
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 4, 32),
            "tensor \"e.gate_up_proj\": U8 [2, 4, 16], expected [2, 8, 16] or [2, 16, 8]: nvfp4 "
            "linears with N = 4, K = 32");
  EXPECT_EQ(ErrorOf(tensors, "down_proj", 4, 32),
            "no tensor e.0.down_proj.weight, e.down_proj or e.down_proj_blocks");
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 24),
            "tensor \"e.gate_up_proj\": K = 24 of the architecture, expected a multiple of 16 for "
            "nvfp4");
  tensors["e.gate_up_proj_pre_quant_scale"] = {DType::kBF16, {32}, {}};
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 32),
            "tensor \"e.gate_up_proj_pre_quant_scale\": a pre_quant_scale of stacked experts is "
            "not supported; export with plain NVFP4");
  tensors.erase("e.gate_up_proj_pre_quant_scale");
  tensors["e.gate_up_proj_weight_scale"].shape = {2, 4, 1};
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 32),
            "tensor \"e.gate_up_proj_weight_scale\": F8_E4M3 [2, 4, 1], expected [2, 4, 2] beside "
            "\"e.gate_up_proj\" [2, 4, 16]");
  tensors["e.gate_up_proj_weight_scale"] = {DType::kF8E4M3, {2, 4, 2}, {}};
  tensors["e.gate_up_proj_weight_scale"].bytes = std::vector<uint8_t>(15, 0x38);
  tensors["e.gate_up_proj_weight_scale"].bytes.push_back(0xB8);
  EXPECT_EQ(ErrorOf(tensors, "gate_proj", 2, 32, 1), "");
  EXPECT_EQ(ErrorOf(tensors, "up_proj", 2, 32, 1),
            "tensor \"e.gate_up_proj_weight_scale\": expert 1, up_proj: element [1, 1] is 0xB8 "
            "(its sign bit is set), expected a positive E4M3 number, 0x00 to 0x7E");
  tensors["e.gate_up_proj_weight_scale_2"].shape = {3};
  EXPECT_NE(ErrorOf(tensors, "gate_proj", 2, 32).find("expected a F32 scalar or [2]"),
            std::string::npos);
  tensors.erase("e.gate_up_proj_weight_scale_2");
  EXPECT_NE(ErrorOf(tensors, "gate_proj", 2, 32).find("needs its _weight_scale_2"),
            std::string::npos);
  tensors.erase("e.gate_up_proj_weight_scale");
  EXPECT_NE(ErrorOf(tensors, "gate_proj", 2, 32).find("needs its _weight_scale, which is missing"),
            std::string::npos);
  tensors = {{"e.down_proj_bias", {DType::kF32, {2, 3}, {}}}};
  const auto bias = folder_.Open(tensors)->ReadExpertBias("e", 0, "down_proj", 4, {});
  EXPECT_EQ(folder_.Shorten(bias.error().message()),
            "tensor \"e.down_proj_bias\": shape [2, 3], expected [experts, 4] with an expert 0");
}

TEST_F(StackedExpertsTest, AGlobalScalePerExpertAndProjection) {
  const auto checkpoint = folder_.Open(
      {{"e.gate_up_proj", {DType::kU8, {2, 2, 8}, std::vector<uint8_t>(32, 0x22)}},
       {"e.gate_up_proj_weight_scale", {DType::kF8E4M3, {2, 2, 1}, {0x38, 0x38, 0x38, 0x38}}},
       {"e.gate_up_proj_weight_scale_2",
        {DType::kF32, {2, 2}, FloatBytes({0.1f, 0.2f, 0.3f, 0.4f})}}});
  EXPECT_EQ(checkpoint->ReadExpert("e", 1, "gate_proj", 1, 16, {})->view.global_scale, 0.3f);
  EXPECT_EQ(checkpoint->ReadExpert("e", 0, "up_proj", 1, 16, {})->view.global_scale, 0.2f);
}

}  // namespace
}  // namespace nibble::formats
