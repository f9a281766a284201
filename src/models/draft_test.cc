// What every architecture with an MTP module must do, on its tiny configs.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <thread>

#include "base/check.h"
#include "comm/communicator.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"
#include "testing/backends.h"
#include "testing/model_runner.h"

namespace nibble::models {
namespace {

using kernels::KvFormat;
using nibble::testing::Backend;
using nibble::testing::ModelRunner;
using nibble::testing::RunnerSequence;
using nibble::testing::TestedBackends;

constexpr int64_t kTokens = 40;
constexpr int64_t kMaxStep = 64;

struct Case {
  std::string name;
  boost::json::object config;
  const kernels::OpTable* ops = nullptr;
};

std::vector<Case> DraftCases() {
  std::vector<Case> cases;
  for (const Architecture& architecture : RegisteredArchitectures()) {
    int number = 0;
    for (const std::string& text : architecture.tiny_configs) {
      Case test = {fmt::format("{}_{}", architecture.architectures.front(), number++),
                   boost::json::parse(text).as_object()};
      const auto model = BuildModel(test.config, {.draft = true});
      if (!model || !(*model)->has_draft()) continue;
      for (const Backend& backend : TestedBackends())
        cases.push_back({test.name + backend.suffix, test.config, backend.ops});
    }
  }
  return cases;
}

class DraftTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<formats::Checkpoint> Checkpoint(bool draft = true) const {
    auto checkpoint = MakeDummyCheckpoint(GetParam().config,
                                          {.linear_format = WeightFormat::kNvfp4, .draft = draft});
    EXPECT_TRUE(checkpoint) << checkpoint.error().message();
    return std::move(*checkpoint);
  }

  std::unique_ptr<Model> Load(const kernels::OpTable* ops = GetParam().ops) {
    auto model = LoadModel(*Checkpoint(), {.ops = ops, .pool = &pool_, .draft = true});
    EXPECT_TRUE(model) << model.error().message();
    EXPECT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));
    return std::move(*model);
  }

  // One token more than the steps take: the last one's successor.
  RunnerSequence Sequence(uint32_t seed, std::vector<int32_t> pages, int32_t slot = 0) const {
    const auto vocab = static_cast<uint32_t>(GetParam().config.at("vocab_size").as_int64());
    std::vector<int32_t> tokens(kTokens + 1);
    for (int32_t& token : tokens) {
      seed = seed * 1664525u + 1013904223u;
      token = static_cast<int32_t>((seed >> 8) % vocab);
    }
    return {.tokens = std::move(tokens), .pages = std::move(pages), .slot = slot};
  }

  static KvPool Pool(const Model& model, int64_t pages = 3) {
    auto pool = KvPool::Create(model.info(), KvFormat::kBf16, 16, pages, 2, *model.ops().device);
    EXPECT_TRUE(pool);
    return std::move(*pool);
  }

  // A pass of the model and one of its draft head, `chunk` tokens at a time.
  static void Run(Model& model, KvPool& kv, RunnerSequence& sequence, int64_t chunk) {
    ModelRunner runner(model, kv);
    while (sequence.done < kTokens) {
      const int64_t count = std::min(chunk, kTokens - sequence.done);
      runner.Step({&sequence}, {count});
      runner.StepDraft({&sequence}, {count});
    }
  }

  ThreadPool pool_{2};
};

void ExpectSame(const std::vector<std::vector<float>>& a,
                const std::vector<std::vector<float>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t row = 0; row < a.size(); ++row) {
    for (size_t v = 0; v < a[row].size(); ++v)
      ASSERT_EQ(std::bit_cast<uint32_t>(a[row][v]), std::bit_cast<uint32_t>(b[row][v]))
          << "row " << row << ", vocabulary entry " << v;
  }
}

// far_share: so many rows may be far off, where a token between two experts took the other one.
void ExpectNear(const std::vector<std::vector<float>>& expected,
                const std::vector<std::vector<float>>& actual, double limit, double far_share) {
  ASSERT_EQ(expected.size(), actual.size());
  struct Row {
    double error = 0;
    double power = 0;
  };
  std::vector<Row> rows(expected.size());
  for (size_t row = 0; row < expected.size(); ++row) {
    for (size_t v = 0; v < expected[row].size(); ++v) {
      rows[row].error += std::pow(actual[row][v] - expected[row][v], 2);
      rows[row].power += std::pow(expected[row][v], 2);
    }
  }
  std::ranges::sort(rows, {}, [](const Row& row) { return row.error / row.power; });
  rows.resize(rows.size() - static_cast<size_t>(far_share * static_cast<double>(rows.size())));
  double error = 0, power = 0;
  for (const Row& row : rows) {
    error += row.error;
    power += row.power;
  }
  std::string of_rows;
  for (const Row& row : rows) of_rows += fmt::format(" {:.3f}", std::sqrt(row.error / row.power));
  EXPECT_LT(std::sqrt(error / power), limit) << "rows:" << of_rows;
}

double FarShare(const Model& model) {
  if (model.info().sections[Section::kExperts] == 0) return 0.0;
  // Of a GPU, whose softmax weights are BF16, more tokens take another expert, and those behind
  // them see it.
  return model.ops().device->host_memory() ? 0.1 : 0.25;
}

TEST_P(DraftTest, TheModuleIsLoadedOnlyIfWantedAndStored) {
  EXPECT_TRUE(Load()->has_draft());
  auto unwanted = LoadModel(*Checkpoint(), {.ops = GetParam().ops, .pool = &pool_});
  ASSERT_TRUE(unwanted) << unwanted.error().message();
  EXPECT_FALSE((*unwanted)->has_draft());
  auto absent =
      LoadModel(*Checkpoint(false), {.ops = GetParam().ops, .pool = &pool_, .draft = true});
  ASSERT_TRUE(absent) << absent.error().message();
  EXPECT_FALSE((*absent)->has_draft());
  EXPECT_EQ((*absent)->info().kv.size(), (*unwanted)->info().kv.size());
}

// The module's bytes are resident, but no part of what a token of the model reads.
TEST_P(DraftTest, BytesPerTokenAreTheModelsOwn) {
  const auto with = Load();
  auto without = LoadModel(*Checkpoint(), {.ops = GetParam().ops, .pool = &pool_});
  ASSERT_TRUE(without);
  EXPECT_EQ(with->info().bytes_per_token, (*without)->info().bytes_per_token);
  EXPECT_EQ(with->info().active_parameters, (*without)->info().active_parameters);
  EXPECT_EQ(with->info().weight_bytes - (*without)->info().weight_bytes > 0, true);
  EXPECT_GT(with->info().sections[Section::kDraft], 0);
  EXPECT_EQ(with->info().kv.size(), (*without)->info().kv.size() + 1);
}

TEST_P(DraftTest, MatchesReference) {
  const auto reference = Load(&kernels::RefOps()), fast = Load();
  RunnerSequence expected = Sequence(7, {0, 1, 2}), actual = expected;
  KvPool expected_pool = Pool(*reference), actual_pool = Pool(*fast);
  Run(*reference, expected_pool, expected, kTokens);
  Run(*fast, actual_pool, actual, kTokens);
  // Tensor cores multiply attention's weights in BF16: another rounding.
  const double limit = fast->ops().device->host_memory() ? 0.02 : 0.03;
  ExpectNear(expected.draft_logits, actual.draft_logits, limit, FarShare(*fast));
}

TEST_P(DraftTest, ChunksBatchAndPagesDoNotMatter) {
  const auto model = Load();
  RunnerSequence whole = Sequence(11, {0, 1, 2});
  KvPool kv = Pool(*model);
  Run(*model, kv, whole, kTokens);
  for (const int64_t chunk : {1, 7, 16}) {
    RunnerSequence chunked = Sequence(11, {2, 0, 1});
    KvPool other = Pool(*model);
    Run(*model, other, chunked, chunk);
    ExpectSame(whole.draft_logits, chunked.draft_logits);
  }
  RunnerSequence watched = Sequence(11, {4, 1, 3}, 1), other = Sequence(13, {0, 2, 5});
  KvPool shared = Pool(*model, 6);
  ModelRunner runner(*model, shared);
  runner.Step({&other, &watched}, {20, 30});
  runner.StepDraft({&other, &watched}, {20, 30});
  runner.Step({&watched, &other}, {10, 3});
  runner.StepDraft({&watched, &other}, {10, 3});
  ExpectSame(whole.draft_logits, watched.draft_logits);
}

// Drafts beyond the last token leave no trace: neither in the model nor, once true tokens have
// taken their positions, in the head.
TEST_P(DraftTest, RejectedDraftsAreForgotten) {
  const auto model = Load();
  RunnerSequence straight = Sequence(17, {0, 1, 2}), drafted = straight;
  KvPool kv = Pool(*model), other = Pool(*model);
  ModelRunner plain(*model, kv);
  plain.Step({&straight}, {kTokens});
  plain.StepDraft({&straight}, {kTokens});

  ModelRunner runner(*model, other);
  while (drafted.done < kTokens) {
    runner.Step({&drafted}, {8});
    runner.StepDraft({&drafted}, {8});
    if (drafted.done == kTokens) break;
    runner.ContinueDraft(drafted, 3, drafted.done, 7);
    runner.ContinueDraft(drafted, 5, drafted.done + 1, 0);
    drafted.draft_logits.resize(drafted.draft_logits.size() - 2);
  }
  ExpectSame(straight.logits, drafted.logits);
  ExpectSame(straight.draft_logits, drafted.draft_logits);
}

TEST_P(DraftTest, TwoRanksMatchOne) {
  if (!GetParam().ops->device->host_memory()) return;
  const auto whole = Load();
  RunnerSequence alone = Sequence(19, {0, 1, 2});
  KvPool kv = Pool(*whole);
  Run(*whole, kv, alone, 17);

  const auto checkpoint = Checkpoint();
  const auto ranks = MakeLoopback(2);
  std::vector<RunnerSequence> shares(2, Sequence(19, {0, 1, 2}));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      auto model =
          LoadModel(*checkpoint, {.pool = &pool,
                                  .tp = {.comm = ranks[rank].get(), .rank = rank, .size = 2},
                                  .draft = true});
      NIBBLE_CHECK(model, "{}", model.error().message());
      NIBBLE_CHECK((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}), "Prepare");
      KvPool share = Pool(**model);
      Run(**model, share, shares[rank], 17);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectSame(shares[0].draft_logits, shares[1].draft_logits);
  ExpectNear(alone.draft_logits, shares[0].draft_logits, 0.03, FarShare(*whole));
}

INSTANTIATE_TEST_SUITE_P(Registry, DraftTest, ::testing::ValuesIn(DraftCases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace nibble::models
