// Full-size models without their weights: what a token reads, by every config of configs/, and a
// checkpoint of hundreds of thousands of tensors bound by its headers alone.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/hf_checkpoint.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "models/token_bytes.h"
#include "testing/source_folder.h"
#include "testing/temp_folder.h"

namespace nibble::models {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kContext = 1024;

fs::path Configs() { return SourceFolder() / "configs"; }

// Of configs/, not registered yet. Empty when every family is there.
const std::set<std::string> kPending = {};

// Bytes per token at a context of 1024, in GB, and parameters in billions, all worked out by hand
// from the published sizes; 0: not worked out.
struct Published {
  const char* name;
  double as_shipped = 0;
  double all_four_bit = 0;
  double parameters = 0;
  double active = 0;
};
constexpr Published kPublished[] = {
    {"DeepSeek-R1", 0, 0, 671.0, 0},
    {"Llama-3.1-8B", 5.044, 0, 8.03, 0},
    {"Llama-3.3-70B", 40.776, 0, 70.55, 0},
    {"Qwen3-235B-A22B", 0, 0, 235.1, 22.2},
    {"Qwen3-30B-A3B", 2.227, 0, 30.53, 3.03},
    {"Qwen3-32B", 19.245, 0, 32.76, 0},
    {"Qwen3-Next-80B-A3B", 4.328, 2.253, 79.67, 3.56},
    {"Qwen3.6-35B-A3B", 2.392, 0, 0, 0},
    {"gpt-oss-120b", 5.045, 0, 116.8, 5.1},
    {"gpt-oss-20b", 3.736, 0, 20.9, 3.6},
};

class Scale : public ::testing::TestWithParam<Published> {
 protected:
  void SetUp() override {
    const auto config = formats::ReadHfConfig((Configs() / GetParam().name).string());
    ASSERT_TRUE(config) << config.error().message();
    const std::string architecture(config->at("architectures").at(0).as_string());
    const auto found = FindArchitecture(*config);
    if (!found && kPending.contains(architecture)) GTEST_SKIP() << architecture << " is to come";
    ASSERT_TRUE(found) << found.error().message();
  }

  static double GigabytesPerToken(DummyPolicy policy, ModelInfo* info) {
    const auto checkpoint =
        OpenDummyCheckpoint((Configs() / GetParam().name).string(), {.policy = policy});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    if (!checkpoint) return 0;
    const auto described = DescribeModel(**checkpoint);
    EXPECT_TRUE(described) << described.error().message();
    if (!described) return 0;
    EXPECT_TRUE(described->left_over.empty()) << described->left_over.front();
    *info = *described;
    const auto kv = ConfiguredKvFormat(**checkpoint);
    EXPECT_TRUE(kv);
    const TokenBytes bytes = CountTokenBytes(*info, *kv, kContext);
    std::printf("%s, %s: %.3f GB/token, %.1f tokens/s at 273 GB/s\n", GetParam().name,
                policy == DummyPolicy::kAllFourBit ? "all 4 bits" : "as shipped",
                static_cast<double>(bytes.total()) / 1e9,
                273e9 / static_cast<double>(bytes.total()));
    return static_cast<double>(bytes.total()) / 1e9;
  }
};

TEST_P(Scale, BytesPerTokenAndParametersAreThePublishedSizes) {
  ModelInfo info;
  const double as_shipped = GigabytesPerToken(DummyPolicy::kAsConfigured, &info);
  const Published& published = GetParam();
  if (published.as_shipped > 0) {
    EXPECT_NEAR(as_shipped, published.as_shipped, 0.02 * published.as_shipped);
  }
  if (published.parameters > 0) {
    EXPECT_NEAR(static_cast<double>(info.parameters) / 1e9, published.parameters,
                0.01 * published.parameters);
  }
  if (published.active > 0) {
    EXPECT_NEAR(static_cast<double>(info.active_parameters) / 1e9, published.active,
                0.03 * published.active);
  }
  const double all_four_bit = GigabytesPerToken(DummyPolicy::kAllFourBit, &info);
  EXPECT_LE(all_four_bit, as_shipped);
  if (published.all_four_bit > 0) {
    EXPECT_NEAR(all_four_bit, published.all_four_bit, 0.02 * published.all_four_bit);
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, Scale, ::testing::ValuesIn(kPublished), [](const auto& info) {
  std::string name = info.param.name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
});

TEST(ScaleConfigs, EachHasAnEntryHere) {
  std::set<std::string> folders, entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(Configs())) {
    if (entry.is_directory()) folders.insert(entry.path().filename().string());
  }
  for (const Published& published : kPublished) entries.insert(published.name);
  EXPECT_EQ(folders, entries);
}

TEST(FamilyTable, ListsEveryRegisteredArchitecture) {
  for (const char* file : {"docs/families.md", "README.md"}) {
    const auto text = ReadFile((SourceFolder() / file).string());
    ASSERT_TRUE(text) << text.error().message();
    for (const Architecture& architecture : RegisteredArchitectures()) {
      EXPECT_NE(text->find("| " + architecture.architectures.front() + " |"), std::string::npos)
          << file << " lacks " << architecture.architectures.front()
          << ": run tools/family_table.py";
    }
  }
}

// The names, dtypes and shapes of Qwen3-Next-80B-A3B's NVFP4 export, written from its published
// tensor table, as safetensors shards whose data is a hole.
class SparseQwen3Next {
 public:
  explicit SparseQwen3Next(const TempFolder& folder) : folder_(folder) {
    Add("model.embed_tokens.weight", "BF16", {151936, 2048});
    Add("model.norm.weight", "BF16", {2048});
    Add("lm_head.weight", "BF16", {151936, 2048});
    for (const char* norm : {"pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"})
      Add(fmt::format("mtp.{}.weight", norm), "BF16", {2048});
    Add("mtp.fc.weight", "BF16", {2048, 4096});
    AddAttention("mtp.layers.0.", false);
    AddMoe("mtp.layers.0.", false);
    Flush();
    for (int layer = 0; layer < 48; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      if (layer % 4 == 3) {
        AddAttention(prefix, true);
      } else {
        AddLinearAttention(prefix);
      }
      AddMoe(prefix, true);
      if (layer % 6 == 5) Flush();
    }
  }

  const std::set<std::string>& names() const { return names_; }
  int64_t mtp_tensors() const { return mtp_tensors_; }

 private:
  void Add(const std::string& name, const char* dtype, const std::vector<int64_t>& shape) {
    const std::string_view type = dtype;
    int64_t bytes = type == "F32" ? 4 : type == "BF16" ? 2 : 1;
    for (const int64_t dim : shape) bytes *= dim;
    header_ += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                           header_.empty() ? "{" : ",", name, dtype, fmt::join(shape, ","), end_,
                           end_ + bytes);
    end_ += bytes;
    names_.insert(name);
    if (name.starts_with("mtp.layers.0.")) ++mtp_tensors_;
  }

  void AddLinear(const std::string& prefix, int64_t n, int64_t k, bool quantised) {
    if (!quantised) return Add(prefix + ".weight", "BF16", {n, k});
    Add(prefix + ".weight", "U8", {n, k / 2});
    Add(prefix + ".weight_scale", "F8_E4M3", {n, k / 16});
    Add(prefix + ".weight_scale_2", "F32", {});
    Add(prefix + ".input_scale", "F32", {});
  }

  void AddNorms(const std::string& prefix) {
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
      Add(prefix + norm + ".weight", "BF16", {2048});
  }

  void AddLinearAttention(const std::string& prefix) {
    AddNorms(prefix);
    const std::string attention = prefix + "linear_attn.";
    AddLinear(attention + "in_proj_qkvz", 12288, 2048, false);
    AddLinear(attention + "in_proj_ba", 64, 2048, false);
    Add(attention + "conv1d.weight", "BF16", {8192, 1, 4});
    Add(attention + "A_log", "BF16", {32});
    Add(attention + "dt_bias", "BF16", {32});
    Add(attention + "norm.weight", "BF16", {128});
    AddLinear(attention + "out_proj", 2048, 4096, true);
  }

  void AddAttention(const std::string& prefix, bool quantised) {
    AddNorms(prefix);
    const std::string attention = prefix + "self_attn.";
    AddLinear(attention + "q_proj", 8192, 2048, false);
    AddLinear(attention + "k_proj", 512, 2048, false);
    AddLinear(attention + "v_proj", 512, 2048, false);
    if (quantised) {
      Add(attention + "k_proj.k_scale", "F32", {});
      Add(attention + "v_proj.v_scale", "F32", {});
    }
    AddLinear(attention + "o_proj", 2048, 4096, quantised);
    Add(attention + "q_norm.weight", "BF16", {256});
    Add(attention + "k_norm.weight", "BF16", {256});
  }

  void AddMoe(const std::string& prefix, bool quantised) {
    AddLinear(prefix + "mlp.gate", 512, 2048, false);
    AddLinear(prefix + "mlp.shared_expert_gate", 1, 2048, false);
    AddMlp(prefix + "mlp.shared_expert.", quantised);
    for (int expert = 0; expert < 512; ++expert)
      AddMlp(fmt::format("{}mlp.experts.{}.", prefix, expert), quantised);
  }

  void AddMlp(const std::string& prefix, bool quantised) {
    AddLinear(prefix + "gate_proj", 512, 2048, quantised);
    AddLinear(prefix + "up_proj", 512, 2048, quantised);
    AddLinear(prefix + "down_proj", 2048, 512, quantised);
  }

  void Flush() {
    header_ += "}";
    header_.resize((header_.size() + 7) / 8 * 8, ' ');
    const auto size = static_cast<uint64_t>(header_.size());
    std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
    const std::string file =
        folder_.Write(fmt::format("model-{:02}.safetensors", shards_++), bytes + header_);
    ASSERT_EQ(0, ::truncate(file.c_str(), static_cast<off_t>(sizeof(size) + size) + end_));
    header_.clear();
    end_ = 0;
  }

  const TempFolder& folder_;
  std::string header_;
  int64_t end_ = 0;  // of the shard's data
  int shards_ = 0;
  std::set<std::string> names_;
  int64_t mtp_tensors_ = 0;  // of its layer
};

TEST(ScaleBinding, EveryTensorOfAnExportOfHundredsOfThousandsHasItsPlace) {
  const auto config = formats::ReadHfConfig((Configs() / "Qwen3-Next-80B-A3B").string());
  ASSERT_TRUE(config);
  if (!FindArchitecture(*config) && kPending.contains("Qwen3NextForCausalLM"))
    GTEST_SKIP() << "Qwen3NextForCausalLM is to come";

  const TempFolder folder;
  for (const char* file : {"config.json", "hf_quant_config.json"})
    fs::copy_file(Configs() / "Qwen3-Next-80B-A3B" / file, fs::path(folder.path()) / file);
  const SparseQwen3Next sparse(folder);
  EXPECT_EQ(sparse.mtp_tensors(), 1549);

  const auto start = std::chrono::steady_clock::now();
  const auto checkpoint = formats::OpenCheckpoint(folder.path(), {.quantization = "nvfp4"});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  EXPECT_EQ((*checkpoint)->tensors().size(), 297728u);
  const auto info = DescribeModel(**checkpoint);
  ASSERT_TRUE(info) << info.error().message();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_TRUE(info->left_over.empty()) << info->left_over.front();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("%zu tensors bound in %.2f s; %.0f MB at most in this process\n",
              (*checkpoint)->tensors().size(), seconds, static_cast<double>(usage.ru_maxrss) / 1e3);

  // A dummy of that config has the same tensors.
  const auto dummy = OpenDummyCheckpoint(folder.path());
  ASSERT_TRUE(dummy) << dummy.error().message();
  std::set<std::string> made;
  for (const formats::TensorEntry& entry : (*dummy)->tensors()) {
    made.insert(entry.name);
    const formats::TensorEntry* real = (*checkpoint)->Find(entry.name);
    ASSERT_NE(real, nullptr) << entry.name;
    EXPECT_EQ(real->dtype, entry.dtype) << entry.name;
    EXPECT_EQ(real->shape.elements(), entry.shape.elements()) << entry.name;
  }
  EXPECT_EQ(made, sparse.names());
}

}  // namespace
}  // namespace nibble::models
