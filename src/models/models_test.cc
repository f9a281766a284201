// The generic suite: what every registered architecture must do, on its tiny configs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>

#include "base/check.h"
#include "comm/communicator.h"
#include "formats/float_tensor.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "numerics/bf16.h"
#include "testing/backends.h"
#include "testing/model_runner.h"

namespace nibble::models {
namespace {

using kernels::ActivationFormat;
using kernels::KvFormat;
using nibble::testing::Backend;
using nibble::testing::ModelRunner;
using nibble::testing::RunnerSequence;
using nibble::testing::TestedBackends;

constexpr int64_t kTokens = 90;  // beyond every tiny config's window
constexpr int64_t kMaxStep = 256;

struct Case {
  std::string name;
  boost::json::object config;
  WeightFormat weights;
  ActivationFormat activations;
  const kernels::OpTable* ops;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const Architecture& architecture : RegisteredArchitectures()) {
    int number = 0;
    for (const std::string& text : architecture.tiny_configs) {
      for (const WeightFormat weights : {WeightFormat::kBf16, WeightFormat::kNvfp4}) {
        const std::string name = fmt::format("{}_{}_{}_", architecture.architectures.front(),
                                             number, WeightFormatName(weights));
        const boost::json::object config = boost::json::parse(text).as_object();
        for (const Backend& backend : TestedBackends()) {
          cases.push_back({name + "a16" + backend.suffix, config, weights, ActivationFormat::kBf16,
                           backend.ops});
        }
        if (weights == WeightFormat::kNvfp4) {
          cases.push_back(
              {name + "a8", config, weights, ActivationFormat::kInt8, &kernels::CpuOps()});
        }
      }
      ++number;
    }
  }
  return cases;
}

class ModelsTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<formats::Checkpoint> Checkpoint() const {
    auto checkpoint = MakeDummyCheckpoint(GetParam().config, {.linear_format = GetParam().weights});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    return std::move(*checkpoint);
  }

  std::unique_ptr<Model> Load(const kernels::OpTable& ops, ThreadPool* pool) const {
    auto model = LoadModel(*Checkpoint(),
                           {.ops = &ops, .pool = pool, .activations = GetParam().activations});
    EXPECT_TRUE(model) << model.error().message();
    EXPECT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));
    return std::move(*model);
  }

  std::vector<int32_t> Tokens(int64_t count, uint32_t seed) const {
    std::vector<int32_t> tokens(count);
    const auto vocab = static_cast<uint32_t>(GetParam().config.at("vocab_size").as_int64());
    for (int32_t& token : tokens) {
      seed = seed * 1664525u + 1013904223u;
      token = static_cast<int32_t>((seed >> 8) % vocab);
    }
    return tokens;
  }

  static RunnerSequence Sequence(std::vector<int32_t> tokens, std::vector<int32_t> pages,
                                 int32_t slot = 0) {
    return {.tokens = std::move(tokens), .pages = std::move(pages), .slot = slot};
  }

  // Pages and state slots hold NaN at first: whatever sequences have left there must not matter.
  static KvPool Pool(const Model& model, KvFormat format, int32_t page_size, int64_t pages) {
    constexpr int64_t kSlots = 4;
    auto pool = KvPool::Create(model.info(), format, page_size, pages, kSlots, *model.ops().device);
    EXPECT_TRUE(pool);
    const std::vector<std::byte> state(pool->state_bytes(), std::byte{0xFF});
    for (int64_t slot = 0; slot < kSlots; ++slot) pool->LoadState(slot, state.data());
    const std::vector<std::byte> page(pool->page_bytes(), std::byte{0xFF});
    for (int64_t i = 0; i < pages; ++i) pool->LoadPage(i, page.data());
    return std::move(*pool);
  }

  const kernels::OpTable& ops() const { return *GetParam().ops; }
  bool on_host() const { return ops().device->host_memory(); }

  ThreadPool pool_{2};
};

// Same bits, row by row; reports the first difference.
void ExpectSameLogits(const RunnerSequence& a, const RunnerSequence& b, const std::string& what) {
  ASSERT_EQ(a.logits.size(), b.logits.size());
  for (size_t row = 0; row < a.logits.size(); ++row) {
    for (size_t v = 0; v < a.logits[row].size(); ++v) {
      ASSERT_EQ(std::bit_cast<uint32_t>(a.logits[row][v]),
                std::bit_cast<uint32_t>(b.logits[row][v]))
          << what << ": token " << row << ", vocabulary entry " << v << ": " << a.logits[row][v]
          << " and " << b.logits[row][v];
    }
  }
}

// Sums over one row of logits.
struct RowDistance {
  size_t row = 0;
  double error = 0;  // of squared differences
  double power = 0;  // of squares
  double largest = 0;
};

RowDistance DistanceOfRow(const RunnerSequence& expected, const RunnerSequence& actual,
                          size_t row) {
  RowDistance out = {.row = row};
  for (size_t v = 0; v < expected.logits[row].size(); ++v) {
    const double difference = actual.logits[row][v] - expected.logits[row][v];
    out.error += difference * difference;
    out.largest = std::max(out.largest, std::abs(difference));
    out.power += double{expected.logits[row][v]} * expected.logits[row][v];
  }
  return out;
}

// The distance is judged against the spread of the logits themselves; a greedy token may differ
// only where its lead is within the distance. A token between two experts may take the other one in
// another summation order, so with experts a share of the rows (0.1: every tenth) may be far off.
void ExpectNearLogits(const RunnerSequence& expected, const RunnerSequence& actual, double limit,
                      double far_share) {
  std::vector<RowDistance> rows;
  for (size_t row = 0; row < expected.logits.size(); ++row)
    rows.push_back(DistanceOfRow(expected, actual, row));
  std::ranges::sort(rows, {}, [](const RowDistance& r) { return r.error / r.power; });
  rows.resize(rows.size() - static_cast<size_t>(far_share * static_cast<double>(rows.size())));
  double error = 0, power = 0, largest = 0;
  for (const RowDistance& row : rows) {
    error += row.error;
    power += row.power;
    largest = std::max(largest, row.largest);
  }
  EXPECT_LT(std::sqrt(error / power), limit);
  for (const RowDistance& row : rows) {
    const std::vector<float>& logits = expected.logits[row.row];
    const std::vector<float>& others = actual.logits[row.row];
    const auto best = std::ranges::max_element(others) - others.begin();
    EXPECT_LE(*std::ranges::max_element(logits) - logits[best], 2 * largest) << "row " << row.row;
  }
}

double FarShare(const Model& model) {
  return model.info().sections[Section::kExperts] > 0 ? 0.1 : 0.0;
}

TEST_P(ModelsTest, EveryTensorIsUsedAndMissingOnesAreNamed) {
  if (!on_host()) return;
  const auto checkpoint = Checkpoint();
  auto info = DescribeModel(*checkpoint);
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_GT(info->weight_bytes, 0);
  EXPECT_GT(info->bytes_per_token, 0);
  EXPECT_LE(info->bytes_per_token, info->weight_bytes);

  // Drop one tensor at a time: loading and describing must fail and say which.
  class Without final : public formats::Checkpoint {
   public:
    Without(const formats::Checkpoint& inner, const std::string& dropped) : inner_(inner) {
      path_ = inner.path();
      config_ = inner.config();
      for (const formats::TensorEntry& entry : inner.tensors()) {
        if (entry.name != dropped) tensors_.push_back(entry);
      }
    }
    Result<std::string> ReadText(std::string_view name) const override {
      return inner_.ReadText(name);
    }
    Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
      return inner_.Read(entry);
    }

   private:
    const formats::Checkpoint& inner_;
  };
  for (const formats::TensorEntry& entry : checkpoint->tensors()) {
    const Without damaged(*checkpoint, entry.name);
    auto model = LoadModel(damaged, {.ops = &kernels::RefOps(), .pool = &pool_});
    ASSERT_FALSE(model) << "loads without " << entry.name;
    // NVFP4 companions are reported under their linear's name.
    const std::string stem = entry.name.substr(0, entry.name.find(".weight"));
    EXPECT_NE(model.error().message().find(stem), std::string::npos) << model.error().message();
  }
}

TEST_P(ModelsTest, MatchesReference) {
  const auto reference = Load(kernels::RefOps(), &pool_);
  const auto fast = Load(ops(), &pool_);
  RunnerSequence expected = Sequence(Tokens(kTokens, 7), {0, 1, 2, 3, 4, 5});
  RunnerSequence actual = expected;
  KvPool expected_pool = Pool(*reference, KvFormat::kBf16, 16, 6);
  KvPool actual_pool = Pool(*fast, KvFormat::kBf16, 16, 6);
  ModelRunner(*reference, expected_pool).Run(expected, kMaxStep);
  ModelRunner(*fast, actual_pool).Run(actual, kMaxStep);
  // Both round activations to BF16 at the same points, so they differ by roundings that fell the
  // other way. Tensor cores multiply attention's weights in BF16: another rounding.
  ExpectNearLogits(expected, actual, on_host() ? 0.02 : 0.03, FarShare(*fast));
}

TEST_P(ModelsTest, PrefillEqualsTokenByToken) {
  const auto model = Load(ops(), &pool_);
  RunnerSequence whole = Sequence(Tokens(kTokens, 11), {0, 1, 2, 3, 4, 5});
  const RunnerSequence start = whole;
  KvPool kv = Pool(*model, KvFormat::kBf16, 16, 6);
  ModelRunner(*model, kv).Run(whole, kMaxStep);
  for (const int64_t chunk : {1, 5, 16, 33}) {
    RunnerSequence chunked = start;
    KvPool other = Pool(*model, KvFormat::kBf16, 16, 6);
    ModelRunner(*model, other).Run(chunked, chunk);
    ExpectSameLogits(whole, chunked, fmt::format("chunks of {}", chunk));
  }
}

TEST_P(ModelsTest, BatchAndPagesDoNotMatter) {
  const auto model = Load(ops(), &pool_);
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8, KvFormat::kNvfp4}) {
    const bool has_blocks = std::ranges::all_of(
        model->info().kv, [](const KvSpec& kv) { return kv.head_dim % 16 == 0; });
    if (format == KvFormat::kNvfp4 && !has_blocks) {
      EXPECT_FALSE(KvPool::Create(model->info(), format, 16, 6, 1, *ops().device));
      continue;
    }
    RunnerSequence alone = Sequence(Tokens(kTokens, 13), {0, 1, 2, 3, 4, 5});
    const RunnerSequence start = alone;
    KvPool kv = Pool(*model, format, 16, 6);
    ModelRunner(*model, kv).Run(alone, kMaxStep);
    for (const int32_t page_size : {16, 32, 128}) {
      RunnerSequence watched = start;
      watched.pages = {7, 2, 9, 4, 11, 0};
      watched.slot = 2;
      RunnerSequence second = Sequence(Tokens(kTokens, 17), {1, 3, 5, 6, 8, 10}, 0);
      RunnerSequence third = Sequence(Tokens(96, 19), {12, 13, 14, 15, 16, 17}, 3);
      KvPool shared = Pool(*model, format, page_size, 18);
      ModelRunner runner(*model, shared);
      runner.Step({&second, &watched}, {40, 7});
      runner.Step({&watched, &third, &second}, {1, 60, 1});
      runner.Step({&second, &third, &watched}, {1, 1, 50});
      while (watched.done < kTokens) runner.Step({&third, &watched}, {1, 1});
      ExpectSameLogits(alone, watched, fmt::format("page size {}", page_size));
    }
  }
}

TEST_P(ModelsTest, CachesCanBeSavedAndRestored) {
  const auto model = Load(ops(), &pool_);
  RunnerSequence straight = Sequence(Tokens(kTokens, 23), {0, 1, 2, 3, 4, 5});
  RunnerSequence moved = straight;
  KvPool kv = Pool(*model, KvFormat::kBf16, 16, 6);
  ModelRunner(*model, kv).Run(straight, kMaxStep);

  KvPool first = Pool(*model, KvFormat::kBf16, 16, 6);
  ModelRunner(*model, first).Step({&moved}, {50});
  KvPool second = Pool(*model, KvFormat::kBf16, 16, 12);
  std::vector<std::byte> page(first.page_bytes());
  for (int32_t i = 0; i < 4; ++i) {
    first.SavePage(i, page.data());
    second.LoadPage(11 - i, page.data());
  }
  std::vector<std::byte> state(first.state_bytes());
  first.SaveState(moved.slot, state.data());
  second.LoadState(1, state.data());
  second.CopyState(1, 3);
  moved.slot = 3;
  moved.pages = {11, 10, 9, 8, 0, 1};
  ModelRunner(*model, second).Run(moved, 3);
  ExpectSameLogits(straight, moved, "after the move");
}

TEST_P(ModelsTest, ThreadsDoNotMatter) {
  if (!on_host()) return;
  ThreadPool one(1), three(3);
  const auto single = Load(kernels::CpuOps(), &one);
  const auto triple = Load(kernels::CpuOps(), &three);
  RunnerSequence a = Sequence(Tokens(40, 29), {0, 1, 2});
  RunnerSequence b = a;
  KvPool kv_a = Pool(*single, KvFormat::kBf16, 16, 3), kv_b = Pool(*triple, KvFormat::kBf16, 16, 3);
  ModelRunner(*single, kv_a).Run(a, 40);
  ModelRunner(*triple, kv_b).Run(b, 40);
  ExpectSameLogits(a, b, "3 threads");
}

// Calibration hears matrices under their stored names, with their own K, and every token's experts.
TEST_P(ModelsTest, AnObserverHearsTheInputsOfLinears) {
  if (!on_host()) return;
  class Recorder : public LinearObserver {
   public:
    void OnInput(std::span<const std::string> modules, const uint16_t* x, int64_t m,
                 int64_t k) override {
      for (const std::string& module : modules) {
        heard[module] = k;
        rows[module] += m;
        if (module.ends_with(".kv_b_proj")) latents[module].assign(x, x + m * k);
      }
    }
    std::map<std::string, std::vector<uint16_t>> latents;
    std::map<std::string, int64_t> heard;
    std::map<std::string, int64_t> rows;
  } recorder;
  const auto checkpoint = Checkpoint();
  auto model = LoadModel(
      *checkpoint, {.pool = &pool_, .activations = GetParam().activations, .observer = &recorder});
  ASSERT_TRUE(model) << model.error().message();
  ASSERT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));
  KvPool pages = Pool(**model, KvFormat::kBf16, 16, kMaxStep / 16);
  ModelRunner runner(**model, pages);
  std::vector<int32_t> all_pages(kMaxStep / 16);
  std::iota(all_pages.begin(), all_pages.end(), 0);
  RunnerSequence sequence = Sequence(Tokens(kMaxStep, 3), all_pages);
  runner.Step({&sequence}, {kMaxStep});
  EXPECT_FALSE(recorder.heard.empty());
  for (const auto& [module, k] : recorder.heard)
    EXPECT_TRUE(checkpoint->ReadLinear(module, 0, k)) << module;

  // kv_b_proj, of which no op has the input, hears normed latents: over the norm's weights the root
  // mean square of a row is 1.
  EXPECT_EQ(recorder.latents.empty(),
            checkpoint->Find("model.layers.0.self_attn.kv_b_proj.weight") == nullptr);
  for (const auto& [module, latents] : recorder.latents) {
    const auto rank = static_cast<size_t>(recorder.heard.at(module));
    ASSERT_EQ(latents.size(), kMaxStep * rank);
    const std::string attention = module.substr(0, module.rfind('.'));
    const formats::TensorEntry* norm = checkpoint->Find(attention + ".kv_a_layernorm.weight");
    ASSERT_NE(norm, nullptr);
    const auto weights = formats::ReadFloats(*checkpoint, *norm, 0, 1, recorder.heard.at(module));
    ASSERT_TRUE(weights) << weights.error().message();
    for (size_t row = 0; row < latents.size(); row += rank) {
      double sum = 0;
      for (size_t j = 0; j < rank; ++j) {
        const double plain = Bf16ToFloat(latents[row + j]) / (*weights)[j];
        sum += plain * plain;
      }
      EXPECT_NEAR(sum / static_cast<double>(rank), 1.0, 0.02) << module;
    }
  }

  std::map<std::string, int64_t> rows_of_layer;  // of all its routed experts
  for (const formats::TensorEntry& entry : checkpoint->tensors()) {
    if (entry.name.find("expert") == std::string::npos || !entry.name.ends_with("down_proj.weight"))
      continue;
    const std::string expert = entry.name.substr(0, entry.name.size() - 16);
    const int64_t rows = recorder.rows[expert + "down_proj"];
    EXPECT_EQ(recorder.rows[expert + "up_proj"], rows) << expert;
    if (checkpoint->Find(expert + "gate_proj.weight") != nullptr) {
      EXPECT_EQ(recorder.rows[expert + "gate_proj"], rows) << expert;
    }
    const size_t routed = expert.find(".experts.");
    if (routed == std::string::npos) {
      EXPECT_EQ(rows, kMaxStep) << expert;
    } else {
      rows_of_layer[expert.substr(0, routed)] += rows;
    }
  }
  for (const auto& [layer, rows] : rows_of_layer) {
    EXPECT_GE(rows, kMaxStep) << layer;
    EXPECT_EQ(rows % kMaxStep, 0) << layer;  // times experts per token
  }
}

TEST_P(ModelsTest, TwoRanksMatchOne) {
  if (!on_host()) return;
  const auto whole = Load(kernels::CpuOps(), &pool_);
  RunnerSequence alone = Sequence(Tokens(40, 31), {0, 1, 2});
  KvPool kv = Pool(*whole, KvFormat::kBf16, 16, 3);
  ModelRunner(*whole, kv).Run(alone, 17);

  const auto checkpoint = Checkpoint();
  const auto ranks = MakeLoopback(2);
  std::vector<RunnerSequence> shares(2, Sequence(Tokens(40, 31), {0, 1, 2}));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      auto model =
          LoadModel(*checkpoint, {.ops = &kernels::CpuOps(),
                                  .pool = &pool,
                                  .activations = GetParam().activations,
                                  .tp = {.comm = ranks[rank].get(), .rank = rank, .size = 2}});
      NIBBLE_CHECK(model, "{}", model.error().message());
      NIBBLE_CHECK((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}), "Prepare");
      KvPool share = Pool(**model, KvFormat::kBf16, 16, 3);
      ModelRunner(**model, share).Run(shares[rank], 17);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectSameLogits(shares[0], shares[1], "the other rank");
  // A sum in another order flips roundings of activations; int8 ones are coarse.
  ExpectNearLogits(alone, shares[0],
                   // Made-up scales differ so much that few columns decide a row of a tiny model.
                   GetParam().activations == ActivationFormat::kInt8 ? 0.08 : 0.02,
                   FarShare(*whole));
}

INSTANTIATE_TEST_SUITE_P(Registry, ModelsTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

TEST(Registry, UnknownArchitectureListsTheKnown) {
  const auto config = boost::json::parse(R"({"architectures": ["GrueForCausalLM"]})").as_object();
  auto found = FindArchitecture(config);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code(), Code::kUnsupported);
  EXPECT_NE(found.error().message().find("GrueForCausalLM"), std::string::npos);
  EXPECT_NE(found.error().message().find("LlamaForCausalLM"), std::string::npos);
}

TEST(Registry, Qwen3HasHeadsOf128UnlessTheConfigSays) {
  auto config = boost::json::parse(R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 96,
    "intermediate_size": 144, "num_hidden_layers": 1, "num_attention_heads": 5, "num_key_value_heads": 1,
    "vocab_size": 293, "max_position_embeddings": 512})")
                    .as_object();
  auto model = BuildModel(config);
  ASSERT_TRUE(model) << model.error().message();
  EXPECT_EQ((*model)->info().kv.front().head_dim, 128);
}

TEST(Registry, HeadsWiderThanABackendTakesAreNamed) {
  const auto config =
      boost::json::parse(R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 64})")
          .as_object();
  const auto checkpoint = MakeDummyCheckpoint(config).value();
  ThreadPool pool(1);
  kernels::OpTable ops = kernels::RefOps();
  EXPECT_TRUE(LoadModel(*checkpoint, {.ops = &ops, .pool = &pool}));
  ops.max_head_dim = 48;
  const auto refused = LoadModel(*checkpoint, {.ops = &ops, .pool = &pool});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kUnsupported);
  EXPECT_NE(refused.error().message().find("64 dimensions"), std::string::npos)
      << refused.error().message();
}

TEST(Registry, ConfigErrorsNameFieldValueAndRange) {
  for (
      const auto& [text, expected] : std::vector<std::pair<const char*, const char*>>{
          {R"({"architectures": ["LlamaForCausalLM"]})", "num_hidden_layers is missing"},
          {R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": -3})",
           "num_hidden_layers is -3"},
          {R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": "two"})",
           "num_hidden_layers is \"two\""},
          {R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 9,
                "max_position_embeddings": 64, "hidden_size": 64, "num_attention_heads": 6, "num_key_value_heads": 4,
                "head_dim": 16})",
           "num_attention_heads 6 is not a multiple"},
      }) {
    const auto config = boost::json::parse(text).as_object();
    auto checkpoint = MakeDummyCheckpoint(config);
    ASSERT_FALSE(checkpoint) << text;
    EXPECT_NE(checkpoint.error().message().find(expected), std::string::npos)
        << checkpoint.error().message();
  }
}

}  // namespace
}  // namespace nibble::models
