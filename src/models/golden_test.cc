// Models against their original implementation: tests/golden/<model>/ describes tiny checkpoints
// and holds what transformers computes for them (tools/make_model_goldens.py).
//
// Yardstick: the mean and the maximum distance of log-probabilities to the original's FP32 run,
// over every position's next token and the original's five best, are at most twice those of the
// original's own BF16 run. A different greedy token fails only where the original's lead exceeds
// the yardstick's maximum.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>

#include "base/file.h"
#include "models/model.h"
#include "testing/backends.h"
#include "testing/golden.h"
#include "testing/golden_weights.h"
#include "testing/model_runner.h"
#include "testing/source_folder.h"

namespace nibble::models {
namespace {

namespace fs = std::filesystem;
using kernels::ActivationFormat;
using nibble::testing::Backend;
using nibble::testing::ModelRunner;
using nibble::testing::OtherCpuBackends;
using nibble::testing::RunnerSequence;
using nibble::testing::TestedBackends;

constexpr int64_t kMaxStep = 256;

struct Case {
  std::string name;
  fs::path checkpoint;  // or a golden's folder: one is made from its weights.json
  fs::path golden;
  ActivationFormat activations;
  const kernels::OpTable* ops;
};

fs::path GoldenRoot() { return GoldenPath(""); }

// With the golden of that name in their folders, on every instruction set. integers: with int8 and
// int16 activations, too.
std::vector<Case> TinyCases(const char* golden, bool integers) {
  std::vector<Backend> exact = TestedBackends();
  const std::vector<Backend> others = OtherCpuBackends();
  exact.insert(exact.end(), others.begin(), others.end());
  std::vector<Backend> hosts = others;
  hosts.push_back({&kernels::CpuOps(), ""});
  std::vector<Case> cases;
  for (const fs::directory_entry& model : fs::directory_iterator(GoldenRoot())) {
    for (const char* format : {"bf16", "nvfp4", "fp8", "mxfp4"}) {
      const fs::path folder = model.path() / format;
      if (!fs::exists(folder / golden)) continue;
      const std::string name = model.path().filename().string() + "_" + format;
      for (const Backend& backend : exact)
        cases.push_back({name + "_a16" + backend.suffix, folder, folder / golden,
                         ActivationFormat::kBf16, backend.ops});
      if (!integers || (format != std::string_view("nvfp4") && format != std::string_view("mxfp4")))
        continue;
      for (const Backend& backend : hosts) {
        cases.push_back({name + "_a8" + backend.suffix, folder, folder / golden,
                         ActivationFormat::kInt8, backend.ops});
        cases.push_back({name + "_int16" + backend.suffix, folder, folder / golden,
                         ActivationFormat::kInt16, backend.ops});
      }
    }
  }
  std::ranges::sort(cases, {}, &Case::name);
  return cases;
}

std::vector<float> LogSoftmax(const std::vector<float>& logits) {
  const float largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double offset = largest + std::log(sum);
  std::vector<float> out;
  for (const float logit : logits) out.push_back(static_cast<float>(logit - offset));
  return out;
}

// Mean and maximum of |Δ log-probability|.
struct Distance {
  double sum = 0, max = 0;
  int64_t count = 0;
  int64_t farthest = 0;  // the number of the difference that is the maximum
  void Add(double difference) {
    sum += std::abs(difference);
    if (std::abs(difference) > max) farthest = count;
    max = std::max(max, std::abs(difference));
    ++count;
  }
  double mean() const { return sum / static_cast<double>(count); }
};

std::vector<int32_t> Ids(const boost::json::value& list) {
  std::vector<int32_t> ids;
  for (const boost::json::value& id : list.as_array())
    ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

// One position's log-probabilities.
void Compare(const boost::json::value& position, const std::vector<float>& logits, Distance* ours,
             Distance* yardstick) {
  const std::vector<float> log_probabilities = LogSoftmax(logits);
  const std::vector<int32_t> ids = Ids(position.at("ids"));
  for (size_t j = 0; j < ids.size(); ++j) {
    const double original = position.at("fp32").at(j).to_number<double>();
    ours->Add(log_probabilities[ids[j]] - original);
    yardstick->Add(position.at("bf16").at(j).to_number<double>() - original);
  }
}

// The path of the case's checkpoint, perhaps made in that folder.
std::string CheckpointOf(const Case& test, const TensorFolder& folder) {
  if (!fs::exists(test.checkpoint / "weights.json")) return test.checkpoint.string();
  nibble::testing::WriteGoldenCheckpoint(test.checkpoint, folder);
  return folder.path();
}

void CheckAgainstGolden(const Case& test) {
  const TensorFolder made;
  auto checkpoint = formats::OpenCheckpoint(CheckpointOf(test, made));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  ThreadPool threads(2);
  auto model = LoadModel(
      **checkpoint,
      {.ops = test.ops, .pool = &threads, .activations = test.activations, .max_positions = 512});
  ASSERT_TRUE(model) << model.error().message();
  ASSERT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));

  auto text = ReadFile(test.golden.string());
  ASSERT_TRUE(text) << text.error().message();
  const boost::json::value golden = boost::json::parse(*text);
  Distance ours, yardstick;
  struct GreedyMiss {
    std::string what;
    double lead;
  };
  std::vector<GreedyMiss> misses;
  for (const boost::json::value& prompt : golden.at("prompts").as_array()) {
    const std::vector<int32_t> greedy = Ids(prompt.at("greedy"));
    RunnerSequence sequence{.tokens = Ids(prompt.at("tokens")), .pages = std::vector<int32_t>(16)};
    std::iota(sequence.pages.begin(), sequence.pages.end(), 0);
    auto kv =
        KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, 16, 16, 1, *test.ops->device);
    ASSERT_TRUE(kv);
    ModelRunner runner(**model, *kv);
    runner.Run(sequence, kMaxStep);
    const boost::json::array& positions = prompt.at("positions").as_array();
    const std::vector<int32_t> undecided = prompt.as_object().contains("undecided")
                                               ? Ids(prompt.at("undecided"))
                                               : std::vector<int32_t>();
    for (size_t i = 0; i < positions.size(); ++i) {
      if (std::ranges::find(undecided, static_cast<int32_t>(i)) != undecided.end()) continue;
      Compare(positions[i], sequence.logits[i], &ours, &yardstick);
    }
    // Greedy, forced back onto the original's path after a miss.
    for (size_t i = 0; i < greedy.size(); ++i) {
      const std::vector<float>& row = sequence.logits.back();
      const auto best = static_cast<int32_t>(std::ranges::max_element(row) - row.begin());
      if (best != greedy[i]) {
        misses.push_back(
            {fmt::format("greedy token {} is {}, the original's is {}", i, best, greedy[i]),
             prompt.at("leads").at(i).to_number<double>()});
      }
      sequence.tokens.push_back(greedy[i]);
      runner.Step({&sequence}, {1});
    }
  }
  EXPECT_LE(ours.mean(), 2 * yardstick.mean());
  EXPECT_LE(ours.max, 2 * yardstick.max)
      << "log-probability " << ours.farthest << " of " << ours.count << ", in order of positions";
  // int8 activations keep the distances but may flip a greedy token with a clear lead, which is why
  // int16 is the default.
  if (test.activations != ActivationFormat::kInt8) {
    for (const GreedyMiss& miss : misses) EXPECT_LE(miss.lead, yardstick.max) << miss.what;
  }
  std::printf("%s (%s): mean %.5f (original in BF16: %.5f), max %.4f (%.4f)\n", test.name.c_str(),
              (*model)->info().architecture.c_str(), ours.mean(), yardstick.mean(), ours.max,
              yardstick.max);
}

// The draft head against draft.json (tools/make_hybrid_goldens.py): a first pass over a prompt,
// then drafts that continue from the head's own hidden states.
void CheckDraftAgainstGolden(const Case& test) {
  const TensorFolder made;
  auto checkpoint = formats::OpenCheckpoint(CheckpointOf(test, made));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  ThreadPool threads(2);
  auto model = LoadModel(**checkpoint, {.ops = test.ops,
                                        .pool = &threads,
                                        .activations = test.activations,
                                        .max_positions = 512,
                                        .draft = true});
  ASSERT_TRUE(model) << model.error().message();
  ASSERT_TRUE((*model)->has_draft());
  ASSERT_TRUE((*model)->Prepare({.tokens = kMaxStep, .rows = kMaxStep}));
  auto text = ReadFile(test.golden.string());
  ASSERT_TRUE(text) << text.error().message();
  const boost::json::value golden = boost::json::parse(*text);
  Distance ours, yardstick;
  for (const boost::json::value& prompt : golden.at("prompts").as_array()) {
    RunnerSequence sequence{.tokens = Ids(prompt.at("tokens")), .pages = {2, 0, 1, 3}};
    const auto count = static_cast<int64_t>(sequence.tokens.size());
    auto kv =
        KvPool::Create((*model)->info(), kernels::KvFormat::kBf16, 16, 4, 1, *test.ops->device);
    ASSERT_TRUE(kv);
    ModelRunner runner(**model, *kv);
    runner.Step({&sequence}, {count});
    int64_t row = count - 1;
    for (const boost::json::value& pass : prompt.at("passes").as_array()) {
      const std::vector<int32_t> tokens = Ids(pass.at("tokens"));
      const int64_t first = pass.at("first").as_int64();
      sequence.draft_logits.clear();
      if (first == 0) {
        sequence.tokens.push_back(tokens.back());
        runner.StepDraft({&sequence}, {count});
      } else {
        runner.ContinueDraft(sequence, tokens[0], first, row);
        row = 0;
      }
      const boost::json::array& positions = pass.at("positions").as_array();
      ASSERT_EQ(positions.size(), sequence.draft_logits.size());
      for (size_t i = 0; i < positions.size(); ++i)
        Compare(positions[i], sequence.draft_logits[i], &ours, &yardstick);
    }
  }
  EXPECT_LE(ours.mean(), 2 * yardstick.mean());
  EXPECT_LE(ours.max, 2 * yardstick.max);
  std::printf("%s, draft head: mean %.5f (BF16: %.5f), max %.4f (%.4f)\n", test.name.c_str(),
              ours.mean(), yardstick.mean(), ours.max, yardstick.max);
}

class GoldenTest : public ::testing::TestWithParam<Case> {};

TEST_P(GoldenTest, WithinTheYardstick) { CheckAgainstGolden(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Tiny, GoldenTest, ::testing::ValuesIn(TinyCases("golden.json", true)),
                         [](const auto& info) { return info.param.name; });

class DraftGoldenTest : public ::testing::TestWithParam<Case> {};

TEST_P(DraftGoldenTest, WithinTheYardstick) { CheckDraftAgainstGolden(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Tiny, DraftGoldenTest, ::testing::ValuesIn(TinyCases("draft.json", false)),
                         [](const auto& info) { return info.param.name; });

// The real SmolLM2, read from the same GGUF as the golden; `make model` fetches it.
TEST(SmolLm2Test, WithinTheYardstick) {
  const fs::path gguf = SourceFolder() / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!fs::exists(gguf)) GTEST_SKIP() << gguf << " is not there: `make model` fetches it";
  CheckAgainstGolden({.name = "smollm2",
                      .checkpoint = gguf,
                      .golden = GoldenRoot() / "smollm2" / "golden.json",
                      .activations = ActivationFormat::kBf16,
                      .ops = TestedBackends().back().ops});
}

}  // namespace
}  // namespace nibble::models
